"""The tests that a GPU's machine runs, and what their log says failed."""

from __future__ import annotations

import re

HOST_TESTS = (
    "tests/kernels/test_gpu_check.py",
    "tests/kernels/test_gpu_replay.py",
    "tests/kernels/test_gpu_steps.py",
    "tests/kernels/test_instruction_sets.py",
    "tests/kernels/test_native.py::TestBuild",
    "tests/kernels/test_triton_aot.py",
)
"""what says nothing of the card, and builds, installs or compiles for minutes: other machines run it"""

FAILURE = re.compile(
    r"(?:\[gw\d+\] \[ *\d+%\] )?(?:FAILED|ERROR) (?P<name>.+?)(?P<why> - .*)?"
    r"|(?P<before>\S+::.+?) (?:FAILED|ERROR)(?: +\[ *\d+%\])?"
)
"""a line of pytest -v, by itself or from a worker, or of the summary that a step which is cut does not reach"""


def without_host_tests() -> list[str]:
    """pytest's flags that leave `HOST_TESTS` out."""
    return [f"--{'deselect' if '::' in test else 'ignore'}={test}" for test in HOST_TESTS]


def failures(lines: list[str]) -> tuple[str, ...]:
    """The tests that a pytest log says failed, each once, with the reason where its end was reached."""
    found: dict[str, str] = {}
    for match in filter(None, map(FAILURE.fullmatch, map(str.strip, lines))):
        name = match["name"] or match["before"]
        found[name] = name + (match["why"] or "")
    return tuple(found.values())
