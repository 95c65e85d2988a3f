"""Kernels recorded on tensors without values: as many as the fake card's scan counts, with the FLOPs of the recipe."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dfkd_fast.benchmark.recorded_steps import record_steps
from dfkd_fast.catalog import METHODS
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.costs.kernels import KINDS, kernels_of
from dfkd_fast.costs.recorder import Part, Recorder
from dfkd_fast.costs.without_values import without_values
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_kernels import backend

TABLE = json.loads((Path(__file__).parents[2] / "bench/results/launches.json").read_text())
INFO = ModelInfo(name="", num_classes=10, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def recorded(method: str, *flags: str, precision: str = "bf16"):
    config = load_config(default_config(method), preset="cifar10", flags=["--text", "orthogonal", *flags])
    runtime = Runtime(device=torch.device("cpu"), precision=precision, channels_last=True)
    return record_steps(config, INFO, runtime, backend="triton")


@pytest.mark.nightly
@pytest.mark.skipif(not torch.__version__.startswith(TABLE["torch"]), reason="the table is of another torch")
def test_counts_the_kernels_that_the_fake_card_does() -> None:
    method, recording, _ = recorded("nayer", "--teacher", TABLE["teacher"], "--student", TABLE["student"])
    bounds = TABLE["steps"]["nayer"]
    assert {part.launches for part in recording.synthesis.values()} == {
        row["bound"] for step, row in bounds.items() if step.startswith("synthesis")
    }
    assert recording.student.launches == bounds["student"]["bound"]
    gigabytes = {step: row["gigabytes"] for step, row in bounds.items()}
    assert recording.student.bytes / 1e9 == pytest.approx(gigabytes["student"], rel=0.1)
    images = method.config.epochs and recording.pool_bytes / (32 * 32 * 3)
    assert recording.peak_bytes > recording.pool_bytes
    assert images == method.pools()[0].capacity


SMALL = ("--teacher", "cnn", "--student", "cnn_s")


NIGHTLY = [name for name in METHODS if name not in ("nayer", "dafl")]


@pytest.mark.parametrize(
    "name", ["nayer", "dafl", *(pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY)]
)
def test_flops_are_those_that_costs_count(name: str) -> None:
    """Costs count a few images of a batch with torch's counter, and scale up."""
    _, recording, counted = recorded(name, *SMALL)
    expected = counted.done
    assert recording.student.flops == pytest.approx(expected.student, rel=0.01)
    assert recording.synthesis.keys() == expected.synthesis.keys()
    for kind, part in recording.synthesis.items():
        assert part.flops == pytest.approx(expected.synthesis[kind], rel=0.01), kind
        assert {kernel.kind for kernel in part.kernels} <= {*KINDS}


CONVS = {
    "plain": (lambda x, w: F.conv2d(x, w, padding=1), (2, 6, 8, 8), (10, 6, 3, 3)),
    "strided": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (2, 6, 8, 8), (10, 6, 3, 3)),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1), (2, 6, 4, 4), (6, 10, 4, 4)),
}


@pytest.mark.parametrize("name", CONVS)
def test_passes_of_a_convolution_share_its_flops(name: str) -> None:
    call, *shapes = CONVS[name]
    x, w = (torch.randn(shape, requires_grad=True) for shape in shapes)
    part, recorder = Part(), Recorder()
    with FlopCounterMode(display=False) as counter, recorder, recorder.into(part):
        call(x, w).sum().backward()
    passes = {kernel.kind: kernel.flops for kernel in part.kernels if kernel.flops}
    assert set(passes) == {"conv", "conv_input_grad", "conv_weight_grad"}
    assert len(set(passes.values())) == 1
    assert part.flops == counter.get_total_flops()
    assert len({kernel.shape for kernel in part.kernels if kernel.flops}) == 1


def test_a_depthwise_convolution_is_told_apart() -> None:
    x, w = torch.randn(2, 8, 6, 6), torch.randn(8, 1, 3, 3)
    args = (x, w, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 8)
    (kernel,) = kernels_of("aten::convolution", args, [x, w], [torch.randn(2, 8, 6, 6)])
    assert (kernel.kind, kernel.flops) == ("conv_depthwise", 2.0 * 2 * 36 * 8 * 9)


def test_a_gather_reads_its_rows_not_its_table() -> None:
    table, rows = torch.zeros(1000, 16), torch.zeros(10, dtype=torch.int64)
    (kernel,) = kernels_of("aten::index_select", (table, 0, rows), [table, rows], [torch.zeros(10, 16)])
    assert kernel.bytes == 2 * 10 * 16 * 4 + 10 * 8


def test_memory_is_what_lives_at_once() -> None:
    recorder = Recorder()
    with without_values(), recorder:
        held = torch.empty(1000)
        for _ in range(3):
            made = torch.empty(500) + 1
        view = held[:10]
        assert recorder.live_bytes == 4000 + 2000
        assert recorder.peak_bytes == 4000 + 2000 + 2000 + 2000  # the old sum lives until the new one has its name
        del held, view, made
        assert recorder.live_bytes == 0


def test_reading_a_value_counts_as_a_wait() -> None:
    part, recorder = Part(), Recorder()
    with without_values(), recorder, recorder.into(part):
        assert torch.ones(()).item() == 1.0
        assert bool(torch.zeros(2).isfinite().all())
    assert part.waits == 2


def test_assumed_forms_end_with_their_block() -> None:
    before = backend.pick("kd_kl", "cpu", torch.float32)
    with backend.assumed("triton"):
        assert backend.pick("kd_kl", "cpu", torch.float32) == "triton"
        assert backend.pick("kd_kl", "cpu", torch.float64) == "reference"
    assert backend.pick("kd_kl", "cpu", torch.float32) == before
    with pytest.raises(ValueError, match="triton or native"), backend.assumed("reference"):
        pass
