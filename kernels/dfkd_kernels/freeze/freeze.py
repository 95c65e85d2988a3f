"""`freeze_teacher`: copy a network, swap its layers for frozen ones, fuse, and compare it with the original."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..bn_act_moments.reference import accumulation_dtype
from ..fuse.fuse import unfuse_batchnorm_
from .convolution import FrozenConv2d
from .fold import fold
from .norms import StatBatchNorm2d, WatchedBatchNorm, is_frozen_batchnorm, parts_of_batchnorm_act
from .probe import fixed_draws, make_probe
from .rewrite import trace
from .swap import SwappedNetwork, replace_modules
from .teacher import FrozenTeacher


def freeze_teacher(
    model: nn.Module,
    *,
    fuse: bool = True,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    share: bool = False,
    image_shape: Sequence[int] | None = None,
    moments: bool = True,
) -> FrozenTeacher:
    """Freeze a network: eval, no weight gradients, BatchNorm2d layers that hand out their batch moments as values.

    Two images of noise go through the original and the frozen network; where the logits differ, less is fused, and
    `report` says so.

    Args:
        model: any network that maps (B, C, H, W) to logits; it is copied, not changed. Of a dict or ModelOutput the
            entry `logits` is taken, of a tuple the first entry.
        fuse: make bn -> act, bn -> add and bn -> add -> act one operator, where torch.fx can trace; the activations
            are those of `bn_act_moments`.
        dtype: compute dtype; weights are stored once in it, BatchNorm's vectors in float32. None: as they are.
        channels_last: store weights and run channels-last.
        share: alias the model's tensors instead of copying them, so that steps of its optimiser show at once.
        image_shape: (C, H, W) of an image that the network takes. None: the channels of its first convolution, and
            the first of 32, 64, 128 and 224 pixels that it takes.
        moments: False makes a network for answers: it hands out no moments, and on a CPU each BatchNorm behind a
            convolution is folded into its weights. Without gradients such a convolution, with the activation
            behind it, is one operator; logits differ by rounding. With gradients it is slower than the other form.

    Raises:
        ValueError: `share` with a `dtype` or without moments, a dtype that is not floating, a network that is frozen
            already, one whose answer holds no logits, or one that answers otherwise in every frozen form.
    """
    if isinstance(model, FrozenTeacher):
        raise ValueError("model: a FrozenTeacher already, expected the network itself")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype {dtype}: choose a floating dtype, such as torch.bfloat16")
    if share and dtype is not None:
        raise ValueError(f"dtype {dtype}: share=True keeps the model's own tensors, so dtype must be None")
    if share and not moments:
        raise ValueError("moments False: share=True keeps the model's own tensors, so nothing can be folded into them")
    probe, notes = make_probe(_aliased(model).eval(), image_shape), []
    origin = None if moments else model
    own_dtype = dtype in (None, next(model.parameters(), torch.zeros(())).dtype)
    for form in _FORMS if fuse else _FORMS[1:]:
        made = _freeze(_copied(model, dtype, channels_last, share), form, share, dtype, channels_last, origin)
        if probe.expected is None:
            break
        # rounding to a coarser dtype may hide what differs: a twin on the model's own tensors is asked instead
        twin = _copied(model, None, False, True)
        asked = made if own_dtype else _freeze(twin, form, True, None, channels_last, origin)
        found = probe.difference(asked)
        if not found:
            break
        notes.append(f"network: not {form}, its logits would differ from the original's by {found}")
    else:
        raise ValueError(f"model: no frozen {type(model).__name__} answers as the original ({'; '.join(notes)})")
    made.report[:0] = [*probe.notes, *notes]
    return made


_FORMS = ("fused", "traced", "swapped")
"""what a frozen network may be, from the fastest to the one that runs the network's own Python"""


def _copied(model: nn.Module, dtype: torch.dtype | None, channels_last: bool, share: bool) -> nn.Module:
    """A copy in eval mode that learns nothing: of the model, or around its tensors."""
    frozen = _aliased(model) if share else copy.deepcopy(model)
    unfuse_batchnorm_(frozen)
    frozen.eval().requires_grad_(False)
    if not share:
        _cast(frozen, dtype, channels_last)
    return frozen


def _freeze(
    frozen: nn.Module,
    form: str,
    share: bool,
    dtype: torch.dtype | None,
    channels_last: bool,
    origin: nn.Module | None,
) -> FrozenTeacher:
    """Swap the layers of a network that is ours, and trace it unless its `form` is "swapped".

    `origin` is the network as it was given, where moments are not asked for.
    """
    report = _swap_layers(frozen, share)
    settings = (report, dtype, channels_last, origin is None)
    if form == "swapped":
        return FrozenTeacher(SwappedNetwork(frozen), None, *settings)
    try:
        with fixed_draws(next(frozen.parameters(), torch.zeros(()))):  # tracing runs the network's own Python
            body, plan = trace(frozen, form == "fused")
    except Exception as error:  # torch.fx runs the network's own Python: anything may come out of it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        report.append(f"network: not fused, torch.fx cannot trace it ({reason})")
        return FrozenTeacher(SwappedNetwork(frozen), None, *settings)
    if origin is not None:
        fold(body, plan, origin)
    report += plan.report
    if plan.features is None:
        report.append("network: features not found, no pooling or flattening before the classifier")
    if plan.classifier is None:
        report.append("network: class_weights not found, the classifier is not one Linear on pooled features")
    return FrozenTeacher(body, plan, *settings)


def _aliased(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same tensors."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, memo)


def _cast(model: nn.Module, dtype: torch.dtype | None, channels_last: bool) -> None:
    """Weights to the compute dtype and layout; BatchNorm's vectors to float32, as its statistics do not fit 8 bits."""
    for module in model.modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if not tensor.is_floating_point():
                continue
            target = dtype or tensor.dtype
            if norm:
                target = accumulation_dtype(target)
            layout = torch.channels_last if channels_last and tensor.dim() == 4 else torch.preserve_format
            tensor.data = tensor.data.to(target, memory_format=layout)


def _swap_layers(model: nn.Module, share: bool) -> list[str]:
    """Replace convolutions and BatchNorms by their frozen forms; returns a line for each that has none."""
    report: list[str] = []
    twins: dict[nn.Module, nn.Module] = {}
    has_norms = any(getattr(module, "running_mean", None) is not None for module in model.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and has_norms:  # without, there is nothing to gain that pays for the call
            reason = FrozenConv2d.why_not(module)
            if reason:
                report.append(f"{name}: keeps its input for backward, {reason}")
            else:
                twins[module] = FrozenConv2d(module, share=share)
        elif isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) or is_frozen_batchnorm(module):
            if module.running_mean is None:
                report.append(f"{name}: no moments, no running statistics")
            else:
                twins[module] = _frozen_norm(module, share)
        elif getattr(module, "running_mean", None) is not None:
            report.append(f"{name}: no moments, {type(module).__name__} does not read (B, C, H, W)")
    replace_modules(model, twins)
    return report


def _frozen_norm(norm: nn.Module, share: bool) -> nn.Module:
    """A layer that hands out the moments of what `norm` reads, and its activation behind it if it has one inside."""
    parts = parts_of_batchnorm_act(norm)
    if parts is not None:
        plain, act = parts
        return nn.Sequential(StatBatchNorm2d(plain, share=share), act)
    if StatBatchNorm2d.why_not(norm):
        return WatchedBatchNorm(norm)
    assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
    return StatBatchNorm2d(norm, share=share)
