"""Events and streams say whose they are: on a machine of several GPUs the current device may be another thread's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ASKING = {
    *("Stream", "current_stream", "synchronize", "get_device_properties", "get_device_capability", "get_device_name"),
    *("mem_get_info", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"),
    *("memory_stats", "memory_summary", "reset_peak_memory_stats", "utilization", "get_rng_state", "initial_seed"),
}
"""functions of torch.cuda that take the current device where none is given"""


def silent(source: str) -> list[int]:
    """Lines on which an event is recorded, or torch.cuda asked, without a stream or device."""
    found, has_events = [], "cuda.Event" in source
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not (node.args or node.keywords):
            asks = node.func.attr in ASKING and ast.unparse(node.func.value) == "torch.cuda"
            if asks or (has_events and node.func.attr == "record"):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("folder", ["dfkd_fast", "kernels/dfkd_kernels"])
def test_each_names_its_device(folder: str) -> None:
    lines = {file: silent(file.read_text()) for file in (ROOT / folder).rglob("*.py")}
    assert lines, f"no files in {folder}"
    assert not {str(file.relative_to(ROOT)): found for file, found in lines.items() if found}


def test_one_that_does_not_is_seen() -> None:
    lines = ["event = torch.cuda.Event()", "event.record()", "torch.cuda.Stream()", "event.record(stream)"]
    assert silent("\n".join([*lines, "torch.cuda.current_stream(device)"])) == [2, 3]
