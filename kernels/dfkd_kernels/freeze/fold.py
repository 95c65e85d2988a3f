"""BatchNorm folded into the convolution before it, for networks that are asked for answers and never for moments."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn

from ..bn_act_moments.ops import bn_act_folded
from ..bn_act_moments.reference import NONE, activate
from .convolution import FrozenConv2d
from .norms import StatBatchNorm2d
from .packed import PackedWeights, convolve_act
from .rewrite import Plan, drop_moments


class FoldedConv2d(nn.Module):
    """A convolution with the BatchNorm behind it in its weights; residual and activation can follow at once.

    On a CPU, without gradients, it and its activation are one oneDNN operator on a packed weight.
    """

    def __init__(self, conv: FrozenConv2d, weight: Tensor, norm: StatBatchNorm2d) -> None:
        """Take over `conv`, whose weight was made from `weight` (D, C / groups, k, l), in any precision."""
        super().__init__()
        exact = torch.float64
        scale = torch.rsqrt(norm.running_var.to(exact) + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.to(exact)
        bias = -norm.running_mean.to(exact) if conv.bias is None else conv.bias.to(exact) - norm.running_mean.to(exact)
        bias = bias * scale if norm.bias is None else bias * scale + norm.bias.to(exact)
        like = conv.weight
        folded = (weight.detach().to(exact) * scale.view(-1, 1, 1, 1)).to(like)
        layout = torch.channels_last if like.is_contiguous(memory_format=torch.channels_last) else torch.preserve_format
        conv.weight = nn.Parameter(folded.contiguous(memory_format=layout), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(like), requires_grad=False)
        conv._derive()
        self.conv = conv
        self._packed = PackedWeights()

    def _apply(self, fn: object, recurse: bool = True) -> FoldedConv2d:
        super()._apply(fn, recurse)
        self._packed = PackedWeights()
        return self

    def forward(self, x: Tensor, residual: Tensor | None = None, act: int = NONE, slope: float = 0.0) -> Tensor:
        """x (B, C, H, W) -> act(conv(x) [+ residual]) (B, D, h, w)."""
        conv = self.conv
        before = act if residual is None else NONE
        y = convolve_act(x, conv.weight, conv.bias, conv.geometry, self._packed, before, slope)
        if y is None:
            y = conv(x)
            return activate(y if residual is None else y + residual, act, slope)
        if residual is None:
            return y
        if residual.shape != y.shape or residual.dtype != y.dtype:
            return activate(y + residual, act, slope)
        # the sum and its activation in one pass; oneDNN can add a residual itself, and took longer in 7 of 10 cases
        zero, one = y.new_zeros(y.shape[1], dtype=torch.float32), y.new_ones(y.shape[1], dtype=torch.float32)
        return bn_act_folded(y, zero, one, zero, residual, act, slope)


def fold(body: fx.GraphModule, plan: Plan, origin: nn.Module) -> None:
    """Fold what can be folded, where that gains; the BatchNorms that are left stand in the plan's report.

    `origin` is the network as it was given: its weights may be finer than the body's.
    """
    modules = dict(body.named_modules())
    gains = next(origin.parameters(), torch.zeros(())).device.type == "cpu"
    calls = Counter(id(modules[str(node.target)]) for node in plan.graph.nodes if node.op == "call_module")
    for path, moments in zip(plan.norms, plan.moments, strict=True):
        pair, y = drop_moments(plan.graph, moments)
        plan.replace(y, pair)
        conv, norm = pair.args[0], modules[path]
        assert isinstance(conv, fx.Node)
        reason = _why_not(conv, norm, modules, calls) if gains else "on a CPU alone it gains"
        if reason:
            plan.report.append(f"{path}: not folded, {reason}")
            continue
        where = str(conv.target)
        layer = modules[where]
        assert isinstance(layer, FrozenConv2d)
        assert isinstance(norm, StatBatchNorm2d)
        body.set_submodule(where, FoldedConv2d(layer, origin.get_submodule(where).weight, norm))  # type: ignore[arg-type]
        kwargs = {name: value for name, value in pair.kwargs.items() if name != "moments"}
        with plan.graph.inserting_before(pair):
            call = plan.graph.call_module(where, conv.args, kwargs)
        pair.replace_all_uses_with(call)
        plan.replace(pair, call)
        plan.forget(conv)
        plan.graph.erase_node(pair)
        plan.graph.erase_node(conv)
    plan.norms, plan.moments = [], []


def _why_not(conv: fx.Node, norm: nn.Module, modules: dict[str, nn.Module], calls: Counter[int]) -> str:
    if not isinstance(norm, StatBatchNorm2d):
        return "it may compute something else than BatchNorm2d"
    if conv.op != "call_module" or not isinstance(modules[str(conv.target)], FrozenConv2d):
        return "no convolution before it"
    if len(conv.users) > 1 or calls[id(modules[str(conv.target)])] > 1 or calls[id(norm)] > 1:
        return "others read or run the convolution before it"
    return ""
