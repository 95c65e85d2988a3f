"""The native extension by itself: what the operators' own tests do not see of it, and how it is built.

Values and gradients of `use("native")` against float64 stand in the operators' own tests, as for every backend.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dfkd_kernels.backend import native_ops

ROOT = Path(__file__).parents[2]
HALVES = (torch.bfloat16, torch.float16)
BUILD_SECONDS = 900  # 50 seconds of one processor's time, on a machine that may have much else to do
native = pytest.mark.skipif(native_ops() is None, reason="the C++ extension is not built")


@pytest.fixture
def ops():
    """torch.ops.dfkd_native, or skip."""
    if native_ops() is None:
        pytest.skip("the C++ extension is not built")
    return native_ops()


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tree(capacity):
    """leaves, sums, counts and capacity of an empty priority tree of one level."""
    assert capacity <= 64 * 64
    return torch.zeros(-(-capacity // 64) * 64), torch.zeros(64, dtype=torch.float64), torch.zeros(64).long(), capacity


def every_operator(ops, layout):
    """Outputs of all operators at sizes that are cut into many pieces of work."""
    x, dy = (random(9, 48, 33, 31, seed=seed).to(memory_format=layout) for seed in (1, 2))
    shift, scale, bias = (random(48, seed=seed) for seed in (3, 4, 5))
    y, stats = ops.bn_act_moments_forward(x, shift, scale, bias, x, 1, 0.0)
    yield from (y, stats)
    yield from ops.bn_act_moments_backward(dy, x, shift, scale, bias, y, shift, scale, 1, 0.0, True)
    y, stats = ops.bn_act_train_forward(x, scale, bias, x, 1e-5, 0.2)
    yield from (y, stats)
    yield from ops.bn_act_train_backward(dy, x, y, scale, bias, stats, 0.2, True)
    yield ops.batch_moments_forward(x, shift)
    yield ops.batch_moments_backward(x, shift, shift, scale)
    yield from ops.cam_margin_forward(x, random(7, 48), torch.arange(9) % 7, None, 1.0)
    student, teacher = random(300, 101, seed=6), random(300, 101, seed=7)
    kl, *lse = ops.kd_kl_forward(student, teacher, 2.0)
    yield from (kl, *lse)
    yield from ops.kd_kl_backward(kl, student, teacher, *lse, kl, 2.0, True, True)
    leaves = tree(4000)
    ops.priority_update(*leaves, torch.arange(4000), random(4000), 0.6, 1e-6)
    yield from leaves[:3]
    uniforms = torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    yield from ops.priority_sample(*leaves, uniforms, 0.4)
    pool, table = torch.randint(0, 256, (20, 17, 19, 3), dtype=torch.uint8), random(256, 3)
    batch = torch.empty(40, 3, 17, 19, memory_format=layout)
    ops.gather_augment(
        pool, torch.arange(40) % 20, torch.ones(40, 2).long(), torch.arange(40) % 2 == 0, table, 2, batch
    )
    yield batch


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_results_do_not_depend_on_the_threads(ops, layout):
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append(list(every_operator(ops, layout)))
    finally:
        torch.set_num_threads(before)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@native
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx512", "avx2", "default"])
def test_every_instruction_set(capability):
    """The operators' tests again on the code for narrower processors, which torch's own variable selects."""
    if capability == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512, and torch does not check what the variable asks for")
    files = [f"tests/kernels/test_{op}.py" for op in ("bn_act_moments", "cam_margin", "kd_kl")]
    chosen = "native and (every_chain or values)"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, *files]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("power", [0, 1, -3, -9, -14])
def test_rounds_as_torch_does(ops, dtype, power):
    """Every bit pattern, times a power of two: exact in float32, so that only load and store can be wrong."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(-1, 1)
    one, zero = torch.ones(1), torch.zeros(1)
    y, _ = ops.bn_act_moments_forward(x, zero, one * 2.0**power, zero, None, 0, 0.0)
    exact = x.float() * 2.0**power
    expected = exact.to(dtype)
    assert torch.equal(y.isnan(), expected.isnan())
    subnormal = exact.abs() < 2.0**-126  # for which a processor's bf16 instructions may give zero
    assert torch.equal(y[~subnormal].nan_to_num(0.0), expected[~subnormal].nan_to_num(0.0))
    assert bool(((y[subnormal] == expected[subnormal]) | (y[subnormal] == 0)).all())


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_exp_over_its_whole_range(ops, temperature):
    """Two classes, the teacher certain of the first: kl = log(1 + e^-gap), down to where e^-gap underflows."""
    gaps = torch.linspace(0.0, 6.0, 2001)
    student = torch.stack([gaps, torch.zeros_like(gaps)], dim=1)
    teacher = torch.tensor([100.0, 0.0]).expand(len(gaps), 2).contiguous()
    kl, lse_student, _ = ops.kd_kl_forward(student, teacher, temperature)
    scaled = student.double() / temperature
    expected = torch.logsumexp(scaled, 1)
    torch.testing.assert_close(lse_student.double(), expected, rtol=3e-7, atol=1e-6)
    torch.testing.assert_close(kl.double(), temperature**2 * (expected - scaled[:, 0]), rtol=1e-5, atol=1e-6)


class TestArguments:
    """A wrong argument is named; an index out of range is never followed."""

    x, vector = torch.zeros(2, 3, 4, 5), torch.zeros(3)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda ops, x, v: ops.bn_act_moments_forward(x[:0], v, v, v, None, 0, 0.0), "x: expected a non-empty"),
            (lambda ops, x, v: ops.bn_act_moments_forward(x.double(), v, v, v, None, 0, 0.0), "x: expected float32"),
            (
                lambda ops, x, v: ops.bn_act_moments_forward(x[..., ::2], v, v, v, None, 0, 0.0),
                "x: expected a contiguous",
            ),
            (lambda ops, x, v: ops.bn_act_moments_forward(x, v[:2], v, v, None, 0, 0.0), "shift: unexpected shape"),
            (
                lambda ops, x, v: ops.bn_act_moments_forward(x, v, v.half(), v, None, 0, 0.0),
                "scale: expected dtype Float",
            ),
            (lambda ops, x, v: ops.bn_act_moments_forward(x, v, v, v, x[1:], 0, 0.0), "residual: shape differs"),
            (lambda ops, x, v: ops.bn_act_moments_forward(x, v, v, v, None, 9, 0.0), "act: expected 0 to 8, got 9"),
            (lambda ops, x, v: ops.batch_moments_backward(x, v, v[:1], None), "dsum: unexpected shape"),
            (lambda ops, x, v: ops.kd_kl_forward(v.view(1, 3), v.view(3, 1), 1.0), "teacher: unexpected shape"),
            (lambda ops, x, v: ops.kd_kl_forward(v.view(1, 3), v.view(1, 3), 0.0), "temperature: expected a positive"),
            (lambda ops, x, v: ops.cam_margin_forward(x, v.view(1, 3), v, None, 1.0), "labels: expected dtype Long"),
            (lambda ops, x, v: ops.priority_clear(v, v.double(), v.long(), 3, v.long()), "leaves: unexpected shape"),
            (lambda ops, x, v: ops.bn_stat_loss(*([v],) * 8, None, None, 0, False), "count: unexpected shape"),
        ],
    )
    def test_wrong_arguments_are_named(self, ops, call, message):
        with pytest.raises(RuntimeError, match=message):
            call(ops, self.x, self.vector)

    def test_another_memory_layout_is_refused(self, ops):
        y = random(2, 3, 4, 5).to(memory_format=torch.channels_last)
        with pytest.raises(RuntimeError, match="residual: memory layout differs"):
            ops.bn_act_moments_forward(self.x, self.vector, self.vector, self.vector, y, 0, 0.0)

    def test_labels_outside_the_classes_give_nothing(self, ops):
        features, weights, labels = random(3, 4, 2, 2), random(5, 4), torch.tensor([-1, 5, 2**40])
        margins, mask = ops.cam_margin_forward(features, weights, labels, None, 0.5)
        assert torch.equal(margins, torch.full((3, 2, 2), 0.5))
        gradient = torch.full_like(features, torch.nan)
        ops.cam_margin_backward(torch.ones_like(margins), mask, weights, labels, gradient)
        assert not gradient.any()

    def test_images_outside_the_pool_are_black(self, ops):
        pool, table = torch.full((2, 3, 3, 1), 7, dtype=torch.uint8), torch.arange(256.0).view(256, 1)
        out = torch.empty(3, 1, 3, 3)
        shifts, flips = torch.zeros(3, 2).long(), torch.zeros(3).bool()
        ops.gather_augment(pool, torch.tensor([-1, 1, 2**40]), shifts, flips, table, 0, out)
        assert torch.equal(out.amax((1, 2, 3)), torch.tensor([0.0, 7.0, 0.0]))

    def test_slots_outside_the_tree_are_skipped(self, ops):
        leaves = tree(100)
        ops.priority_update(*leaves, torch.tensor([-1, 3, 100, 2**40]), torch.ones(4), 1.0, 1e-6)
        assert leaves[0].nonzero().tolist() == [[3]]
        ops.priority_clear(*leaves, torch.tensor([-64, 3, 2**40]))
        assert not any(part.any() for part in leaves[:3])

    def test_an_empty_tree_gives_no_weight(self, ops):
        indices, is_weights = ops.priority_sample(*tree(100), torch.rand(5, dtype=torch.float64), 0.0)
        assert bool(((indices >= 0) & (indices < 100)).all())
        assert is_weights.isnan().all()


def build(folder, **environment):
    """`setup.py build_ext` into a folder of its own; the finished process and the binaries."""
    folders = ["--build-lib", f"{folder}/lib", "--build-temp", f"{folder}/temp"]
    command = [sys.executable, "setup.py", "build_ext", *folders]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DFKD_")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS)
    return result, sorted(folder.glob("lib/**/*.so"))


class TestBuild:
    """setup.py: an extension where it can be built, a package without one where it cannot, and no half-way."""

    def test_not_wanted(self, tmp_path):
        result, binaries = build(tmp_path, DFKD_BUILD_EXT="0")
        assert result.returncode == 0
        assert not binaries

    def test_a_failing_compiler_leaves_a_pure_package_and_says_so(self, tmp_path):
        result, binaries = build(tmp_path, CXX=shutil.which("false"), DFKD_BUILD_CUDA="0")
        assert result.returncode == 0
        assert "dfkd_kernels._C is not built" in result.stderr
        assert not binaries

    def test_a_failing_compiler_is_an_error_where_the_extension_is_asked_for(self, tmp_path):
        result, binaries = build(tmp_path, CXX=shutil.which("false"), DFKD_BUILD_CUDA="0", DFKD_BUILD_EXT="1")
        assert result.returncode != 0
        assert "dfkd_kernels._C cannot be built" in result.stderr
        assert not binaries

    def test_without_torch_as_in_an_isolated_build(self, tmp_path):
        (tmp_path / "torch.py").write_text("raise ImportError('no torch in this build')")
        result, binaries = build(tmp_path, PYTHONPATH=str(tmp_path))
        assert result.returncode == 0
        assert "torch is not importable during the build" in result.stderr
        assert not binaries

    def test_cuda_without_a_toolkit_is_an_error(self, tmp_path):
        if Path("/usr/local/cuda/include/cuda_runtime.h").exists():
            pytest.skip("a CUDA toolkit is in the default folder")
        folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()]
        hidden = {"PATH": os.pathsep.join(folders), "CUDA_HOME": "", "CUDA_PATH": ""}
        result, binaries = build(tmp_path, DFKD_BUILD_CUDA="1", **hidden)
        assert result.returncode != 0
        assert "no CUDA toolkit is found" in result.stderr
        assert not binaries

    @pytest.mark.slow
    @pytest.mark.timeout(BUILD_SECONDS + 100)
    @pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
    @pytest.mark.parametrize("architectures", ["9.0", pytest.param("8.0;9.0", marks=pytest.mark.nightly)])
    def test_cuda_sources_compile_and_link(self, tmp_path, architectures):
        how = {"DFKD_BUILD_EXT": "1", "DFKD_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures}
        result, binaries = build(tmp_path, **how)
        assert result.returncode == 0, result.stderr[-3000:]
        (binary,) = binaries
        wanted = [b"sm_" + each.replace(".", "").encode() for each in architectures.split(";")]
        assert all(architecture in binary.read_bytes() for architecture in wanted)
        names = ("bn_stat_loss", "gather_augment", "priority_update", "priority_clear", "priority_sample")
        code = f"import torch; torch.ops.load_library({str(binary)!r}); "
        code += "has = torch._C._dispatch_has_kernel_for_dispatch_key; "
        code += f"assert all(has('dfkd_native::' + name, 'CUDA') for name in {names})"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
