"""Every Triton kernel compiles for our GPUs, with none there; the interpreter takes what compilers reject.

The committed table of what they take has a row for each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "bench/kernels/triton_resources.py"
TABLE = TOOL.parents[1] / "results/triton-resources.jsonl"
DTYPES = ("float32", "float16", "bfloat16")
# each says its dtypes in its cases' names, but for those that are float32 whatever the network's dtype
KERNELS = tuple(
    f"{name}_{way}" for name in ("bn_relu", "moments", "cam_margin", "kd_kl") for way in ("forward", "backward")
)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_without_spills_and_fit(arch, tmp_path):
    out = tmp_path / "resources.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(TOOL), "--arch", str(arch), "--out", str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [row["kernel"] for row in rows]
    assert len(names) == len(set(names))
    assert all(0 < row["registers"] <= 255 and row["arch"] == f"sm_{arch}" for row in rows)
    for kernel in (*KERNELS, "kd_kl_priority_forward", "gather_augment"):
        for dtype in DTYPES:
            assert any(name.startswith(kernel) and f"_{dtype}_" in name for name in names), (kernel, dtype)
    tree = [f"priority_{step}" for step in ("update", "write", "refresh", "sample")]
    for kernel in ("moment_loss", "sum_partials", *tree):
        assert any(name.startswith(kernel) for name in names), kernel
    table = [json.loads(line) for line in TABLE.read_text().splitlines()]
    assert [row["kernel"] for row in table if row["arch"] == f"sm_{arch}"] == names, f"make {TABLE.name} anew"


def test_a_kernel_that_does_not_fit_is_an_error(tmp_path):
    """The tool's verdict itself: with no shared memory at all, every kernel that uses some must be named."""
    code = (
        "import sys, runpy; sys.argv = ['tool', '--arch', '90']; "
        f"sys.path.insert(0, {str(TOOL.parent)!r}); import triton_resources as tool; "
        "from dfkd_kernels.bn_stat_loss.triton import aot_cases; tool.find_cases = aot_cases; "
        "tool.SHARED_MEMORY = {90: 0}; sys.exit(tool.main())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "does not fit" in result.stderr
    assert "moment_loss" in result.stderr
