"""gather_augment against padding, slicing and flipping one image at a time, bit for bit, on every backend."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_contract import (
    BACKENDS,
    DEVICE,
    EPSILON,
    check_capturable,
    check_compiles,
    check_repeatable,
    needs_cpu,
    needs_gpu,
    running_on,
)

from dfkd_kernels import gather_augment
from dfkd_kernels.gather_augment import ops, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMATS = (torch.channels_last, torch.contiguous_format)
MEAN, STD = (0.4914, 0.4822, 0.4465, 0.5), (0.2023, 0.1994, 0.2010, 0.25)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "gather_augment") as name:
        yield name


def problem(size=(9, 7), channels=3, batch=6, pad=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(0, 256, (11, *size, channels), dtype=torch.uint8, generator=generator)
    indices = torch.randint(0, len(pool), (batch,), generator=generator)
    shifts = torch.randint(-pad, pad + 1, (batch, 2), generator=generator)
    flips = torch.rand(batch, generator=generator) < 0.5
    return [tensor.to(DEVICE) for tensor in (pool, indices, shifts, flips)]


def one_at_a_time(pool, indices, shifts, flips, mean, std, pad):
    """The definition: pad the image, cut a window out, mirror it, then normalise each value. Float64."""
    height, width, channels = pool.shape[1:]
    out = []
    for index, (dy, dx), flip in zip(indices.tolist(), shifts.tolist(), flips.tolist(), strict=True):
        image = F.pad(pool[index].permute(2, 0, 1).double(), (pad,) * 4)
        image = image[:, pad + dy : pad + dy + height, pad + dx : pad + dx + width]
        out.append(image.flip(2) if flip else image)
    mean, std = (torch.tensor(v, dtype=torch.float64, device=pool.device).view(-1, 1, 1) for v in (mean, std))
    assert channels == len(mean)
    return (torch.stack(out) / 255 - mean) / std


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("size", "channels"), [((9, 7), 3), ((1, 1), 1), ((12, 5), 1), ((3, 10), 2), ((32, 32), 3), ((5, 8), 4)]
)
def test_is_the_definition(backend, size, channels, memory_format, dtype):
    inputs, mean, std = problem(size, channels), MEAN[:channels], STD[:channels]
    expected = one_at_a_time(*inputs, mean, std, pad=2)
    expected = expected if dtype == torch.float64 else expected.float().to(dtype)
    actual = gather_augment(*inputs, mean, std, pad=2, dtype=dtype, memory_format=memory_format)
    assert actual.shape == expected.shape
    assert actual.is_contiguous(memory_format=memory_format)
    if dtype == torch.bfloat16 and backend == "triton" and DEVICE == "cpu":
        # Triton's interpreter truncates where the hardware rounds to nearest
        torch.testing.assert_close(actual, expected, rtol=EPSILON[dtype], atol=0)
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", list(itertools.product((-4, 0, 4), repeat=2)))
def test_extreme_shifts(backend, shift, flip):
    """Windows that lie mostly, or for a 3-pixel image wholly, in the padding."""
    pool, indices, _, _ = problem((3, 3), batch=1)
    shifts, flips = torch.tensor([shift], device=DEVICE), torch.tensor([flip], device=DEVICE)
    actual = gather_augment(pool, indices, shifts, flips, MEAN[:3], STD[:3], pad=4)
    assert torch.equal(actual, one_at_a_time(pool, indices, shifts, flips, MEAN[:3], STD[:3], 4).float())


def test_shifts_beyond_the_padding_are_clamped(backend):
    pool, indices, shifts, flips = problem(pad=2)
    shifts[:4] = torch.tensor([[3, -3], [2**40, 0], [0, -(2**62)], [-7, 2**31]], device=DEVICE)
    actual = gather_augment(pool, indices, shifts, flips, MEAN[:3], STD[:3], pad=2)
    assert torch.equal(actual, gather_augment(pool, indices, shifts.clamp(-2, 2), flips, MEAN[:3], STD[:3], pad=2))


def test_no_padding_is_plain_normalisation(backend):
    pool, indices, shifts, flips = problem()
    flips[:] = False
    actual = gather_augment(pool, indices, shifts, flips, MEAN[:3], STD[:3], pad=0)
    mean, std = (torch.tensor(v[:3], dtype=torch.float64, device=DEVICE) for v in (MEAN, STD))
    expected = ((pool[indices].double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert torch.equal(actual, expected.float())


def test_table_is_rounded_once():
    table = reference.pixel_table(MEAN, STD, torch.device("cpu"))
    assert table.shape == (256, 4)
    for value, channel in itertools.product((0, 1, 127, 255), range(4)):
        exact = (value / 255 - MEAN[channel]) / STD[channel]
        assert table[value, channel] == torch.tensor(exact, dtype=torch.float64).float()


def test_statistics_may_be_tensors(backend):
    inputs = problem()
    mean, std = torch.tensor(MEAN[:3]), torch.tensor(STD[:3])
    actual = gather_augment(*inputs, mean, std, pad=2)
    assert torch.equal(actual, gather_augment(*inputs, mean.tolist(), std.tolist(), pad=2))


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 6),
    st.sampled_from(FORMATS),
    st.integers(0, 1000),
)
def test_every_shape(size, channels, batch, pad, memory_format, seed):
    inputs, mean, std = problem(size, channels, batch, pad, seed), MEAN[:channels], STD[:channels]
    expected = one_at_a_time(*inputs, mean, std, pad).float()
    for name in BACKENDS:
        try:
            with running_on(name, "gather_augment"):
                actual = gather_augment(*inputs, mean, std, pad=pad, memory_format=memory_format)
                assert torch.equal(actual, expected)
        except pytest.skip.Exception:
            continue


def test_defaults(backend):
    batch = gather_augment(*problem(), MEAN[:3], STD[:3], pad=2)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_repeatable(backend):
    check_repeatable(lambda *inputs: gather_augment(*inputs, MEAN[:3], STD[:3], pad=2), *problem())


@pytest.mark.parametrize("memory_format", FORMATS)
def test_compiles_in_one_graph(backend, memory_format):
    def view(*inputs):
        return gather_augment(*inputs, MEAN[:3], STD[:3], pad=2, dtype=torch.bfloat16, memory_format=memory_format)

    check_compiles(view, *problem())


def test_operator_passes_opcheck(backend):
    for dtype, channels_last in itertools.product((torch.float32, torch.bfloat16), (True, False)):
        arguments = (*problem(), list(MEAN[:3]), list(STD[:3]), 2, dtype, channels_last, backend)
        torch.library.opcheck(ops._gather.overload, arguments)


POOL, INDICES = torch.zeros(5, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
SHIFTS, FLIPS = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": POOL.float()}, "pool: dtype"),
        ({"pool": POOL[0]}, "pool: shape"),
        ({"pool": POOL[:0]}, "pool: shape"),
        ({"pool": POOL.permute(0, 3, 1, 2)}, "pool: .* contiguous"),
        ({"pool": POOL.to("meta")}, "pool: on meta"),
        ({"indices": INDICES[:0]}, "indices: shape .* non-empty"),
        ({"indices": INDICES.int()}, "indices: dtype"),
        pytest.param({"indices": torch.tensor([0, 5])}, r"indices: 5 is outside \[0, 5\)", marks=needs_cpu),
        pytest.param({"indices": torch.tensor([-1, 0])}, "indices: -1 is outside", marks=needs_cpu),
        ({"shifts": SHIFTS[:1]}, "shifts: "),
        ({"shifts": SHIFTS.int()}, "shifts: "),
        ({"shifts": SHIFTS.to("meta")}, "shifts: on meta"),
        ({"flips": FLIPS[:1]}, "flips: shape"),
        ({"flips": FLIPS.long()}, "flips: dtype"),
        ({"mean": (0.5,)}, "mean: 1 values"),
        ({"std": (0.5, 0.5)}, "std: 2 values"),
        ({"std": (0.5, 0.0, 0.5)}, "std: .* positive"),
        ({"pad": -1}, "pad: -1"),
        ({"dtype": torch.uint8}, "dtype: "),
        ({"memory_format": torch.preserve_format}, "memory_format: "),
    ],
)
def test_wrong_arguments_are_named(backend, change, message):
    arguments = {"pool": POOL, "indices": INDICES, "shifts": SHIFTS, "flips": FLIPS, "mean": MEAN[:3], "std": STD[:3]}
    with pytest.raises(ValueError, match=message):
        gather_augment(**{**arguments, "pad": 1, **change})


@needs_gpu
@pytest.mark.gpu
def test_cuda_graph(backend):
    inputs = problem((32, 32), batch=64)
    check_capturable(lambda: gather_augment(*inputs, MEAN[:3], STD[:3], pad=2, dtype=torch.bfloat16))


@needs_gpu
@pytest.mark.gpu
def test_reads_a_pinned_pool_in_place(backend):
    pool, indices, shifts, flips = problem((32, 32), batch=64)
    expected = gather_augment(pool, indices, shifts, flips, MEAN[:3], STD[:3], pad=2)
    host = pool.cpu().pin_memory()
    if backend == "reference":
        with pytest.raises(ValueError, match="pool: on cpu"):
            gather_augment(host, indices, shifts, flips, MEAN[:3], STD[:3], pad=2)
    else:
        assert torch.equal(gather_augment(host, indices, shifts, flips, MEAN[:3], STD[:3], pad=2), expected)
