"""Every method's steps may be captured once and replayed: the same bits as running them as Python each time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import test_contract
import torch
from tape import Tape
from test_contract import Assembled, every_method, teacher_file, tiny  # noqa: F401 - a fixture
from torch import Tensor

from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.rng import seed_phase
from dfkd_fast.training import capture, inner, student
from dfkd_fast.training.capture import WARM_UP_STEPS, CapturedSteps, EagerSteps

STEPS = WARM_UP_STEPS + 3


def longer(config: TrainConfig) -> TrainConfig:
    """Enough steps in each phase that some are replayed; one more epoch than there are variants."""
    return replace(config, method=replace(config.method, synthesis_steps=STEPS, student_steps=STEPS, epochs=4))


def results(config: TrainConfig, folder: Path) -> dict[str, Tensor]:
    """All that a run keeps after rounds in every epoch and student epochs in most, and every loss term on the way."""
    run = Assembled(config, folder)
    terms: list[Tensor] = []

    def on_step(found: dict[str, Tensor], _images: int) -> None:
        terms.append(torch.stack([found[name] for name in sorted(found)]))

    try:
        for epoch in range(config.method.epochs):
            seed_phase(0, 0, epoch, "synthesis")
            run.round(epoch, on_step=on_step)
            if epoch:
                seed_phase(0, 0, epoch, "distillation")
                run.trainer.epoch(epoch, STEPS, on_step)
    finally:
        run.pool.close()
    kept = {f"student/{name}": value for name, value in run.student.state_dict().items()}
    kept |= {f"method/{name}": value for name, value in run.method.state_dict().items()}
    return kept | {f"terms/{index}": value for index, value in enumerate(terms)}


@every_method
def test_replays_equal_steps(
    name: str,
    teacher_file: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounds with and without the student, learning rates that change, re-initialisation: nothing is missed."""
    check_replays(longer(tiny(name, teacher_file, tmp_path / "run")), tmp_path, monkeypatch)


def test_replays_of_the_student_switches_equal_steps(
    teacher_file: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mixtures drawn anew in each step, Muon, and a rate for each step."""
    config = longer(tiny("nayer", teacher_file, tmp_path / "run"))
    switches = {"student_mix": "both", "student_optimizer": "muon", "student_schedule": "one-cycle"}
    method = replace(config.method, student_lr=1e-3, **switches)
    check_replays(replace(config, method=method), tmp_path, monkeypatch)


def check_replays(config: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the recipe captured on a tape and as Python, and compare all that is kept."""
    tapes: list[Tape] = []

    def recorder(_device: torch.device) -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    def capturing(**arguments: object) -> Runtime:
        return replace(make_runtime(**arguments), graphs=True)  # type: ignore[arg-type]

    monkeypatch.setattr(test_contract, "make_runtime", capturing)
    monkeypatch.setattr(capture, "CudaGraphs", recorder)
    replayed = results(config, folder / "replayed")
    assert all(tape.recorded for tape in tapes), "no step was recorded"
    for module in (inner, student):
        monkeypatch.setattr(module, "make_runner", lambda step, _runtime: EagerSteps(step))
    expected = results(config, folder / "eager")
    assert replayed.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(replayed[key], value), key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["nayer", "deepinversion", "ssdkd", "cmi"])
def test_cuda_graphs_equal_steps(
    name: str,
    teacher_file: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the card: the same losses up to sums in another order, and no replay makes the host wait."""
    found = {}
    for graphs in (False, True):
        runtime = functools.partial(make_runtime, precision="fp32", graphs=graphs)
        monkeypatch.setattr(test_contract, "make_runtime", lambda runtime=runtime, **_: runtime(device="cuda"))
        kept = results(longer(tiny(name, teacher_file, tmp_path / "run")), tmp_path / f"pool-{graphs}")
        found[graphs] = {key: value.cpu() for key, value in kept.items() if key.startswith("terms/")}
    torch.testing.assert_close(found[True], found[False], rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replay_makes_nobody_wait_and_takes_no_memory() -> None:
    device = torch.device("cuda")
    total, weight = torch.zeros(2, device=device), torch.ones(2, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=torch.tensor(0.1, device=device), fused=True, capturable=True)

    def step(value: Tensor) -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = (weight * value).square().sum()
        loss.backward()
        optimizer.step()
        total.add_(value)
        return {"loss": loss.detach()}

    run = CapturedSteps(step, capture.CudaGraphs(device))
    value = torch.ones(2, device=device)
    for _ in range(STEPS):
        run("variant", value)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS):
            run("variant", value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_allocated() == held
    assert total.tolist() == [2 * STEPS] * 2


def doubler() -> tuple[Callable[..., dict[str, Tensor]], Tensor]:
    """A step that adds twice its input to a total, and the total."""
    total = torch.zeros(2)

    def step(factor: Callable[[], float], value: Tensor) -> dict[str, Tensor]:
        total.add_(value * factor())
        return {"total": total.clone()}

    return step, total


def test_inputs_are_copied_in_and_terms_are_fresh() -> None:
    step, total = doubler()
    run = CapturedSteps(functools.partial(step, lambda: 2.0), Tape())
    for count in range(1, STEPS + 1):
        terms = run("variant", torch.full((2,), float(count)))  # a new tensor each time
        assert terms["total"].tolist() == [count * (count + 1)] * 2
    assert total.tolist() == [STEPS * (STEPS + 1)] * 2


def test_the_tape_shows_what_a_graph_would() -> None:
    """A Python number that changes between steps is frozen by recording: the check above can fail."""
    step, total = doubler()
    numbers = iter(range(100))
    run = CapturedSteps(functools.partial(step, lambda: next(numbers)), Tape())
    for _ in range(STEPS):
        run("variant", torch.ones(2))
    assert total.tolist() != [sum(range(STEPS))] * 2


def test_each_variant_is_recorded_once() -> None:
    step, _ = doubler()
    tape = Tape()
    run = CapturedSteps(functools.partial(step, lambda: 1.0), tape)
    for variant in (False, True, False, True):
        for _ in range(STEPS):
            run(variant, torch.ones(2))
    assert tape.recorded == 2


def test_another_shape_is_refused() -> None:
    step, _ = doubler()
    run = CapturedSteps(functools.partial(step, lambda: 1.0), Tape())
    run("variant", torch.ones(2))
    with pytest.raises(AssertionError, match=r"\(1,\) where it had \(2,\)"):
        run("variant", torch.ones(1))
