"""Modules and optimisers as flat tensors with names, and back in place: what a checkpoint holds of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def module_tensors(part: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state under a part's name."""
    return {f"{part}/{name}": value for name, value in module.state_dict().items()}


def load_module(part: str, module: nn.Module, tensors: Mapping[str, Tensor], *, fitting: bool = False) -> None:
    """Copy a part's state into a module, in place and strictly; with `fitting` what has another shape by now stays."""
    own, saved = module.state_dict(), part_tensors(part, tensors)
    if fitting:
        saved = {name: value if value.shape == own[name].shape else own[name] for name, value in saved.items()}
    module.load_state_dict(saved)


def part_tensors(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part, under their names within it."""
    prefix = f"{part}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(part: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimiser's state under a part's name; learning rates are functions of the epoch and need no saving."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{part}/{index}.{key}": value for index, slots in state.items() for key, value in slots.items()}
    steps = [group["step"] for group in optimizer.param_groups if "step" in group]  # apex counts them there
    return tensors | ({f"{part}/steps": torch.tensor([int(step) for step in steps])} if steps else {})


def load_optimizer(part: str, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimiser's state, each tensor in its parameter's memory layout (the fused steps walk both
    together). Where a parameter has another shape by now, as a rank's share of images may, its state starts anew.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = part_tensors(part, tensors)
    if "steps" in saved:
        _set_steps(optimizer, saved.pop("steps"))
    slots = [(parameters[int(name.partition(".")[0])], name.partition(".")[2], value) for name, value in saved.items()]
    reshaped = {parameter for parameter, _, value in slots if value.ndim and value.shape != parameter.shape}
    for parameter, key, value in slots:
        if parameter not in reshaped:
            like = torch.empty_like(parameter) if value.ndim else value.to(parameter.device)
            optimizer.state[parameter][key] = like.copy_(value)


def _set_steps(optimizer: Optimizer, steps: Tensor) -> None:
    for group, step in zip(optimizer.param_groups, steps.tolist(), strict=True):
        on_device = getattr(optimizer, "capturable", False)
        device = group["params"][0].device
        group["step"] = torch.tensor([step], dtype=torch.int32, device=device) if on_device else step
