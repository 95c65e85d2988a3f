"""Optimisers as data: a method says what it optimises and how, the loop builds, steps and resets it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from dfkd_fast.errors import UserError, unknown

OptimizerChoice = Literal["auto", "fused", "foreach", "apex"]


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """Which optimiser, over which parameter groups (each with its own "lr"), with which remaining arguments."""

    kind: Literal["adam", "adamw", "sgd", "nesterov", "muon"]
    groups: Sequence[dict[str, Any]]
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, choice: OptimizerChoice = "auto", *, capturable: bool = False) -> Optimizer:
        """The optimiser, by default torch's fused one: one pass over each parameter, no host synchronisation.

        `choice` "foreach" is torch's form of one pass for each term of the update, "apex" NVIDIA apex's fused one.
        `capturable`: learning rates are scalars on the device, at addresses that `set_lr` and `scale_lr` write to, and
        no step looks at a value: what a step that is captured and replayed needs.
        """
        groups = [{**group, "base_lr": group["lr"]} for group in self.groups]
        if capturable:
            for group in groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
        if choice == "apex":
            return self._apex(groups, capturable)
        form = {"foreach": True} if choice == "foreach" else {"fused": True}
        if self.kind in ("sgd", "nesterov"):
            if capturable and choice == "foreach":
                raise UserError("--optim.impl foreach: its SGD cannot be captured; choose fused, or --no-cuda-graphs")
            sgd, decay = SGD if choice == "foreach" else _FusedSGD, self.weight_decay
            nesterov = self.kind == "nesterov"
            return _with_momentum(sgd(groups, momentum=self.momentum, weight_decay=decay, nesterov=nesterov, **form))
        if self.kind == "muon":
            return Muon(groups, betas=self.betas, weight_decay=self.weight_decay, capturable=capturable, **form)
        adam, adamw = (Adam, AdamW) if choice == "foreach" else (_FusedAdam, _FusedAdamW)
        cls = adam if self.kind == "adam" else adamw
        made = cls(groups, betas=self.betas, weight_decay=self.weight_decay, capturable=capturable, **form)
        # the first steps of a captured loop run uncaptured, as they should: torch would warn of it
        made._warned_capturable_if_run_uncaptured = True
        return made

    def _apex(self, groups: list[dict[str, Any]], capturable: bool) -> Optimizer:
        if self.kind == "muon":
            raise UserError("--optim.impl apex: has no Muon, which --student-optimizer asks for; choose auto")
        adam, sgd = apex_optimizers()
        if self.kind in ("sgd", "nesterov"):
            if capturable:
                raise UserError("--optim.impl apex: its FusedSGD cannot be captured; choose fused, or --no-cuda-graphs")
            own: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.kind == "nesterov"}
            return _with_momentum(sgd(groups, lr=0.0, weight_decay=self.weight_decay, **own))
        own = {"betas": self.betas, "weight_decay": self.weight_decay, "adam_w_mode": self.kind == "adamw"}
        return adam(groups, lr=0.0, capturable=capturable, **own)


class _InMemoryOrder:
    """Hands torch's fused kernels gradients that they neither copy nor misread on a CPU.

    These kernels walk over parameter, gradient and state as each lies in memory. They copy a gradient that is not
    contiguous before, channels-last ones above all, and read the copy nowhere: 3 % of a student step (ResNet-18, 112
    px, bf16). So such a gradient is passed as a contiguous view of the same memory; and one that is laid out otherwise
    than its parameter, element by element another's, is first brought into that layout.
    """

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: Any) -> Any:
        found = super()._init_group(group, params, grads, *states)  # type: ignore[misc]
        grads[:] = [in_memory_order(grad, param) for grad, param in zip(grads, params, strict=True)]
        return found


class _FusedSGD(_InMemoryOrder, SGD):
    pass


class _FusedAdam(_InMemoryOrder, Adam):
    pass


class _FusedAdamW(_InMemoryOrder, AdamW):
    pass


class Muon(_FusedAdamW):
    """Muon (Jordan et al., 2024) for every parameter of two and more dimensions, AdamW for the others.

    A weight (A, ...) is taken as a matrix (A, B). Its step is the nearest orthogonal matrix to its Nesterov momentum,
    times 0.2 sqrt(max(A, B)), so that it is about as large as AdamW's and one rate is right for both (Liu et al.,
    arXiv:2502.16982). torch.optim.Muon takes matrices alone, in bfloat16, and reads the rate back from the device.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._warned_capturable_if_run_uncaptured = True
        for group in self.param_groups:
            for weight in filter(_is_matrix, group["params"]):
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: Any) -> Any:
        rest = [value for value in group["params"] if not _is_matrix(value)]
        return super()._init_group({**group, "params": rest}, params, grads, *states)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; gradients must be unscaled."""
        assert closure is None, "gradients are there already"
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in filter(_is_matrix, group["params"]):
                if weight.grad is not None:
                    shapes.setdefault((len(weight), weight.numel() // len(weight)), []).append(weight)
            for shape, weights in shapes.items():
                self._step_matrices(weights, shape, group)
        return super().step()

    def _step_matrices(self, weights: Sequence[Tensor], shape: tuple[int, ...], group: dict[str, Any]) -> None:
        """All matrices of a shape (A, B), at once."""
        momentum, lr = group["betas"][0], group["lr"]
        ahead = []
        for weight in weights:
            gradient = weight.grad
            assert gradient is not None
            buffer = self.state[weight]["momentum_buffer"].lerp_(gradient, 1 - momentum)
            ahead.append(gradient.lerp(buffer, momentum).reshape(shape))
        steps = orthogonalized(torch.stack(ahead)) * (0.2 * math.sqrt(max(shape)))
        for weight, step in zip(weights, steps, strict=True):
            weight.mul_(1 - lr * group["weight_decay"]).sub_(lr * step.reshape(weight.shape))


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (N, A, B) with their singular values brought to about 1 (0.7 to 1.2), by five Newton-Schulz steps.

    Coefficients of Jordan et al., for the steepest rise at zero.
    """
    found = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.mT
        found = 3.4445 * found + (-4.7750 * gram + 2.0315 * gram @ gram) @ found
    return found.mT if matrices.shape[1] > matrices.shape[2] else found


def in_memory_order(gradient: Tensor, parameter: Tensor) -> Tensor:
    """On a CPU a gradient as a contiguous tensor of its shape, whose memory has the order of the parameter's."""
    if gradient.device.type != "cpu" or (gradient.is_contiguous() and parameter.is_contiguous()):
        return gradient
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    if gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last):
        return gradient.permute(0, 2, 3, 1).view(gradient.shape)
    return gradient


def _with_momentum(optimizer: Optimizer) -> Optimizer:
    """The same SGD with a momentum of zeros, which its first step turns into the gradient.

    torch's fused SGD would allocate it in the first step and leave it unwritten where fp16's loss scaler has that step
    skipped: the next one would read whatever lay there.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def check_optimizer(choice: str, device: torch.device) -> None:
    """Raise UserError for an implementation that is unknown, or that this machine does not have."""
    if choice not in get_args(OptimizerChoice):
        raise unknown("--optim.impl", choice, get_args(OptimizerChoice))
    if choice == "apex":
        if device.type != "cuda":
            raise UserError(f"--optim.impl apex: needs a CUDA device, not {device}; choose auto, fused or foreach")
        apex_optimizers()


def apex_optimizers() -> tuple[Any, Any]:
    """FusedAdam and FusedSGD of NVIDIA apex. Raises UserError where they are not there.

    Found by these classes and their kernels, not by the package's name: the `apex` of the public package index is
    another project.
    """
    try:
        import amp_C  # noqa: F401 - the kernels, which only a build with --cuda_ext has
        from apex.optimizers import FusedAdam, FusedSGD
    except ImportError as error:
        raise UserError(
            f"--optim.impl apex: NVIDIA's fused optimisers are not here ({error}); the package index's `apex` is "
            "another project: build NVIDIA's from source (docs/performance.md), or choose auto, fused or foreach"
        ) from None
    return FusedAdam, FusedSGD


@torch.no_grad()
def reset_state(optimizer: Optimizer) -> None:
    """Forget moments and step counts in place: the same as a new optimiser, but no tensor moves (compile and graphs
    survive).
    """
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    for group in optimizer.param_groups:  # apex counts steps in the group
        if isinstance(group.get("step"), torch.Tensor):
            group["step"].zero_()
        elif "step" in group:
            group["step"] = 0


def cosine(progress: float) -> float:
    """Factor on a learning rate that falls along a cosine: 1 at `progress` 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every group's learning rate; in place where it is a tensor (captured steps hold its address)."""
    for group in optimizer.param_groups:
        _set_group_lr(group, lr)


def scale_lr(optimizer: Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` times the one that its spec gave."""
    for group in optimizer.param_groups:
        _set_group_lr(group, factor * group["base_lr"])


def _set_group_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
