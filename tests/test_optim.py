"""Optimisers: all implementations agree, learning rates stay at their addresses, apex is known by its kernels."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dfkd_fast.errors import UserError
from dfkd_fast.optim import OptimizerChoice, OptimizerSpec, apex_optimizers, check_optimizer, reset_state, scale_lr

Kind = Literal["adam", "adamw", "sgd", "nesterov", "muon"]
KINDS: tuple[Kind, ...] = ("adam", "adamw", "sgd", "nesterov", "muon")
IN_APEX = KINDS[:4]
NO_APEX = importlib.util.find_spec("amp_C") is None


def train(
    kind: Kind, choice: OptimizerChoice, *, capturable: bool = False, device: str = "cpu", dtype: Any = torch.float64
) -> list[Tensor]:
    """Weights after steps at several learning rates, with a reset of Adam's state half-way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(device, dtype)
    weights = list(net.parameters())
    groups = [{"params": weights[:2], "lr": 0.125}, {"params": weights[2:], "lr": 0.25}]
    spec = OptimizerSpec(kind=kind, groups=groups, betas=(0.5, 0.99), momentum=0.75, weight_decay=0.0625)
    optimizer = spec.build(choice, capturable=capturable)
    rates = [group["lr"] for group in optimizer.param_groups]
    inputs = torch.randn(4, 6, dtype=torch.float64).to(device, dtype)
    for step in range(8):
        if step == 4 and kind not in ("sgd", "nesterov"):
            reset_state(optimizer)
        scale_lr(optimizer, 0.5 ** (step % 3))
        optimizer.zero_grad()
        net(inputs).square().sum().backward()
        optimizer.step()
    if capturable:
        assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
    return [weight.detach().cpu() for weight in weights]


@pytest.mark.parametrize("kind", KINDS)
def test_fused_foreach_and_capturable_agree(kind: Kind) -> None:
    expected = train(kind, "auto")
    assert all(torch.equal(a, b) for a, b in zip(train(kind, "fused"), expected, strict=True))
    torch.testing.assert_close(train(kind, "foreach"), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(train(kind, "auto", capturable=True), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", IN_APEX)
@pytest.mark.parametrize(
    ("choice", "capturable"),
    [
        ("auto", False),
        ("auto", True),
        ("fused", False),
        ("fused", True),
        ("foreach", False),  # torch captures it on a GPU only
        pytest.param("apex", False, marks=[pytest.mark.gpu, pytest.mark.skipif(NO_APEX, reason="no NVIDIA apex")]),
    ],
)
def test_a_first_step_that_the_loss_scaler_skips_leaves_nothing(
    kind: Kind, choice: OptimizerChoice, capturable: bool
) -> None:
    """In memory that is poisoned: what an optimiser has allocated and not written would be NaN in the next step."""
    expected, found = (after_overflow(kind, choice, capturable, skipped=skipped) for skipped in (False, True))
    assert torch.equal(found, expected)
    assert found.isfinite().all()


def after_overflow(kind: Kind, choice: OptimizerChoice, capturable: bool, *, skipped: bool) -> Tensor:
    """Weights after one good step, which may come after one whose gradient overflows."""
    device = "cuda" if choice == "apex" else "cpu"
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        weight = nn.Parameter(torch.ones(8, device=device))
        spec = OptimizerSpec(kind=kind, groups=[{"params": [weight], "lr": 0.125}], momentum=0.75, weight_decay=0.25)
        optimizer = spec.build(choice, capturable=capturable)
        scaler = torch.amp.GradScaler(device, init_scale=1.0)
        for overflow in (True, False) if skipped else (False,):
            optimizer.zero_grad()
            scaler.scale((weight * (torch.inf if overflow else 2.0)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before[0]
        torch.use_deterministic_algorithms(before[1])
    return weight.detach()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(NO_APEX, reason="NVIDIA apex is not installed")
@pytest.mark.parametrize("kind", IN_APEX)
def test_apex_does_what_torch_does(kind: Kind) -> None:
    expected = train(kind, "auto", device="cuda", dtype=torch.float32)
    torch.testing.assert_close(train(kind, "apex", device="cuda", dtype=torch.float32), expected, rtol=1e-5, atol=1e-6)


def test_foreach_sgd_is_not_captured() -> None:
    with pytest.raises(UserError, match=r"--optim.impl foreach: .*--no-cuda-graphs"):
        train("sgd", "foreach", capturable=True)


@pytest.mark.skipif(not NO_APEX, reason="NVIDIA apex is installed")
def test_another_project_called_apex_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package index's `apex` imports well and has no optimisers."""
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    with pytest.raises(UserError, match=r"--optim.impl apex: NVIDIA's fused optimisers are not here .*from source"):
        apex_optimizers()


def test_choices_that_this_machine_cannot_follow() -> None:
    with pytest.raises(UserError, match=r"--optim.impl apex: needs a CUDA device, not cpu"):
        check_optimizer("apex", torch.device("cpu"))
    with pytest.raises(UserError, match=r"--optim.impl adam: .*choose auto, fused, foreach or apex"):
        check_optimizer("adam", torch.device("cpu"))


@pytest.mark.parametrize("kind", IN_APEX)
@pytest.mark.parametrize("gradients", [torch.channels_last, torch.contiguous_format])
def test_fused_steps_follow_the_layout_and_copy_no_gradient(kind: Kind, gradients: torch.memory_format) -> None:
    """Channels-last weights, gradients in their layout and in another: contiguous ones' values, bit for bit.

    Nesterov's up to rounding: the kernel sums its last elements otherwise, and which are last is the layout's.
    """

    def trained(weights: torch.memory_format, gradients: torch.memory_format) -> tuple[list[Tensor], list[str]]:
        generator = torch.Generator().manual_seed(0)
        parameters = [
            nn.Parameter(torch.randn(shape, generator=generator).to(memory_format=weights))
            for shape in ((5, 4, 3, 3), (4, 6, 1, 1), (1, 3, 2, 2))
        ]
        groups = [{"params": parameters, "lr": 0.125}]
        optimizer = OptimizerSpec(kind=kind, groups=groups, momentum=0.75, weight_decay=0.0625).build()
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(memory_format=gradients)
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                optimizer.step()
        assert optimizer.state.keys() == set(parameters)
        return [*parameters], [event.name for event in seen.events()]

    found, operators = trained(torch.channels_last, gradients)
    expected, _ = trained(torch.contiguous_format, torch.contiguous_format)
    torch.testing.assert_close(found, expected, rtol=1e-6 if kind == "nesterov" else 0, atol=0)
    assert "aten::clone" not in operators


def test_nesterov_is_its_formula() -> None:
    """v = m v + g, w = w - lr (g + m v), in float64."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    w, v = weight.detach().clone(), torch.zeros(3, dtype=torch.float64)
    optimizer = OptimizerSpec(
        kind="nesterov", groups=[{"params": [weight], "lr": 0.1}], momentum=0.8, weight_decay=0.01
    ).build()
    for _ in range(4):
        optimizer.zero_grad()
        weight.pow(4).sum().backward()
        optimizer.step()
        g = 4 * w**3 + 0.01 * w
        v = 0.8 * v + g
        w = w - 0.1 * (g + 0.8 * v)
    torch.testing.assert_close(weight.detach(), w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (12, 4, 1, 1), (6, 7), (7, 6)])
def test_muon_is_its_formula(shape: tuple[int, ...]) -> None:
    """By singular values in float64: each goes through the polynomial five times, singular vectors stay."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(shape, dtype=torch.float64)), nn.Parameter(torch.ones(3).double())
    if weight.ndim == 4:
        weight.data = weight.data.to(memory_format=torch.channels_last)
    w, buffer = weight.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    alone = nn.Parameter(bias.detach().clone())
    settings: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.02}
    muon = OptimizerSpec(kind="muon", groups=[{"params": [weight, bias], "lr": 0.01}], **settings).build()
    adamw = OptimizerSpec(kind="adamw", groups=[{"params": [alone], "lr": 0.01}], **settings).build()
    for _ in range(3):
        weight.grad, bias.grad = torch.randn(shape, dtype=torch.float64), torch.randn(3).double()
        alone.grad = bias.grad.clone()
        buffer = 0.9 * buffer + 0.1 * weight.grad
        u, s, vh = torch.linalg.svd((0.9 * buffer + 0.1 * weight.grad).flatten(1), full_matrices=False)
        s = s / s.square().sum().sqrt()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        rows, columns = u.shape[0], vh.shape[1]
        w = (1 - 0.01 * 0.02) * w - 0.01 * 0.2 * max(rows, columns) ** 0.5 * (u @ s.diag() @ vh).reshape(shape)
        muon.step()
        adamw.step()
    torch.testing.assert_close(weight.detach(), w, rtol=1e-9, atol=1e-9)
    assert torch.equal(bias, alone)


def test_apex_has_no_muon() -> None:
    with pytest.raises(UserError, match=r"^--optim.impl apex: has no Muon.*choose auto$"):
        OptimizerSpec(kind="muon", groups=[{"params": [nn.Parameter(torch.ones(2))], "lr": 0.1}]).build("apex")
