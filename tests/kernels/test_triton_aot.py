"""Every Triton kernel compiles for our GPUs, with none there, by both supported Tritons; the interpreter takes what
compilers reject. The committed table has what each takes of a GPU, and nothing may take more.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import aot_cases
import numpy
import pytest
import triton

TOOL = Path(__file__).parents[2] / "bench/kernels/triton_resources.py"
TABLE = TOOL.parents[1] / "results/launches.json"
REMAKE = f"make it anew: python bench/kernels/{TOOL.name} --out bench/results/{TABLE.name}"
FETCH_SECONDS = 200
DTYPES = ("float32", "float16", "bfloat16")
# each says its dtypes in its cases' names, but for those that are float32 whatever the network's dtype
KERNELS = tuple(
    f"{name}_{way}"
    for name in ("bn_relu", "bn_train_act", "moments", "cam_margin", "kd_kl")
    for way in ("forward", "backward")
)
OTHER = "3.6" if triton.__version__.startswith("3.7") else "3.7"
"""the supported Triton that is not installed"""


def compiled(*arguments: str, ahead: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The tool, with these folders first on its path."""
    return started([str(TOOL), *arguments], ahead)


def started(arguments: list[str], ahead: tuple[Path, ...] = (), **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | settings
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, ahead), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)


def table() -> list[dict]:
    spec = importlib.util.spec_from_file_location("launch_table", TOOL.with_name("launch_table.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.kernel_rows(TABLE)


def test_four_programs_of_the_forward_kernel_share_a_multiprocessor():
    """What `TILINGS` count on: 65,536 registers, 64 a thread, 8 warps. With a residual, sm_80 took 75."""
    forward = ("bn_relu_forward", "bn_add_relu6_forward", "moments_forward")
    rows = [row for row in table() if row["kernel"].startswith(forward) and "_nhwc_200x" in row["kernel"]]
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90", "sm_100"}
    assert all(row["registers"] * 32 * row["warps"] * 4 <= 65536 for row in rows)
    assert not any(row["spilled_bytes"] for row in table())


def test_the_table_has_every_case_and_every_kernel_and_dtype():
    names = [case.name for case in aot_cases.find("cases")]
    assert len(names) == len(set(names))
    for arch in (80, 90, 100):
        assert sorted(row["kernel"] for row in table() if row["arch"] == f"sm_{arch}") == sorted(names), REMAKE
    for kernel in (*KERNELS, "kd_kl_priority_forward", "gather_augment"):
        for dtype in DTYPES:
            assert any(name.startswith(kernel) and f"_{dtype}_" in name for name in names), (kernel, dtype)
    tree = [f"priority_{step}" for step in ("update", "write", "refresh", "sample")]
    for kernel in ("bn_stat_loss", "sum_partials", *tree):
        assert any(name.startswith(kernel) for name in names), kernel
    assert all(0 < row["registers"] <= 255 for row in table())


def test_a_sample_of_each_kernel_compiles():
    """All of it every night: a minute of processor time for each architecture."""
    result = compiled("--arch", "80", "90", "100", "--every", "40", "--check", str(TABLE))
    assert result.returncode == 0, result.stderr


def test_a_sample_of_the_corners_compiles():
    result = compiled("--arch", "90", "--corners", "--every", "80")
    assert result.returncode == 0, result.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_compile_without_spills_and_fit(arch):
    result = compiled("--arch", str(arch), "--check", str(TABLE))
    assert result.returncode == 0, result.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_all_corners_compile(arch):
    result = compiled("--arch", str(arch), "--corners")
    assert result.returncode == 0, result.stderr


def test_every_integer_of_every_kernel_is_1_in_some_corner():
    """Triton makes a constant of an integer argument that is 1, which not every expression survives."""
    corners = list(aot_cases.find("corners"))
    assert len({case.name for case in corners}) == len(corners)
    for case in aot_cases.find("cases"):
        for place, value in enumerate(case.args):
            if type(value) is int:
                same = [corner.args[place] for corner in corners if corner.kernel is case.kernel]
                assert 1 in same, f"{case.name}: argument {place} is never 1"


@pytest.fixture(scope="module")
def other_triton() -> Path:
    """A folder with the other Triton, kept beside the installed one; fetched once, where there is an index."""
    return fetched(f"triton=={OTHER}.*", f"triton-{OTHER}")


def fetched(requirement: str, name: str) -> Path:
    folder = Path(sys.prefix) / "other" / name
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
            command = [*pip, "--retries", "0", "--timeout", "20", "--target", f"{partial}/{name}", requirement]
            try:
                result = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
            except subprocess.TimeoutExpired:
                pytest.skip(f"{requirement} is not here and pip could not fetch it in {FETCH_SECONDS} s")
            if result.returncode:
                last = next(reversed(result.stderr.strip().splitlines()), "")
                pytest.skip(f"{requirement} is not here and pip cannot fetch it: {last}")
            try:
                (Path(partial) / name).rename(folder)
            except OSError:  # another process of these tests was first
                assert folder.exists()
    return folder


def test_a_handful_compiles_by_the_other_triton(other_triton):
    """Every kernel once, where an integer is 1: what one Triton takes and the other does not."""
    result = compiled("--arch", "80", "--corners", "--every", "1000", ahead=(other_triton,))
    assert result.returncode == 0, result.stderr
    assert f"triton {OTHER}." in result.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("corners", [(), ("--corners",)])
def test_everything_compiles_by_the_other_triton(other_triton, arch, corners):
    result = compiled("--arch", str(arch), *corners, ahead=(other_triton,))
    assert result.returncode == 0, result.stderr
    assert f"triton {OTHER}." in result.stderr


INTERPRETED = """
import numpy, torch, triton
from dfkd_kernels import kd_kl, use
logits = torch.randn(2, 5, 7)
found = {}
for name in ("reference", "triton"):
    use(name, op="kd_kl")
    found[name] = kd_kl(logits[0], logits[1], 4.0)
torch.testing.assert_close(found["triton"], found["reference"])
print(triton.__version__, numpy.__version__)
"""


@pytest.mark.nightly
@pytest.mark.skipif(OTHER != "3.6", reason="here the other Triton is not 3.6, whose interpreter this is about")
def test_the_older_interpreter_needs_an_older_numpy(other_triton):
    """With the numpy of pyproject.toml's triton36 it agrees with the reference; with a newer one it is refused."""
    older = fetched("numpy<2.4", "numpy-2.3")
    result = started(["-c", INTERPRETED], (other_triton, older), TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("3.6.")
    if tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4):
        result = started(["-c", INTERPRETED], (other_triton,), TRITON_INTERPRET="1")
        assert "kd_kl cannot run it: Triton 3.6.0's interpreter fails with numpy" in result.stderr


def test_a_kernel_that_does_not_fit_is_an_error():
    """The tool's verdict itself: with no shared memory at all, every kernel that uses some must be named."""
    result = verdict("tool.SHARED_MEMORY = {90: 0}", "--arch", "90")
    assert result.returncode == 1
    assert "does not fit" in result.stderr
    assert "bn_stat_loss" in result.stderr


def test_growth_and_what_does_not_compile_are_errors(tmp_path):
    known = json.loads(TABLE.read_text())["triton"]
    names = [name for name in known["kernels"] if name.startswith("bn_stat_loss")]
    kernels = {name: known["kernels"][name] for name in names[:-1]}
    for amounts in kernels[names[0]].values():
        amounts["registers"] -= 1
        amounts["spilled_bytes"] -= 1  # none can be fewer than none
    lower = tmp_path / "lower.json"
    lower.write_text(json.dumps({"triton": {**known, "triton": triton.__version__, "kernels": kernels}}))
    broken = "\n".join(
        (
            "good = list(few.cases())",
            "bad = good[0]._replace(name='wrong', options={**good[0].options, 'BLOCK': 1000})",
            "tool.aot_cases.find = lambda kind: [*good, bad]",
        )
    )
    result = verdict(broken, "--arch", "90", "--check", str(lower))
    assert result.returncode == 1
    assert "grew: bn_stat_loss_l2_plain sm_90: registers" in result.stderr
    assert "grew: bn_stat_loss_l2_plain sm_90: spilled_bytes" in result.stderr
    assert "not in the table: bn_stat_loss_l2_squared_all sm_90" in result.stderr
    assert "does not compile: wrong sm_90" in result.stderr


def verdict(patch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool on the few cases of one operator, patched."""
    code = "\n".join(
        (
            f"import sys; sys.argv = ['tool', *{arguments!r}]; sys.path.insert(0, {str(TOOL.parent)!r})",
            "import triton_resources as tool",
            "from aot_cases import bn_stat_loss as few; tool.aot_cases.find = lambda kind: few.cases()",
            patch,
            "sys.exit(tool.main())",
        )
    )
    return started(["-c", code])
