"""BatchNorms in eval mode that hand out the batch moments of what they read."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import pick
from ..bn_act_moments.ops import batch_moments, bn_act_folded, bn_act_moments_folded
from ..bn_act_moments.reference import NONE, Moments, accumulation_dtype, activate
from .derived import DerivedLayer, has_hooks


class StatBatchNorm2d(DerivedLayer):
    """An eval BatchNorm2d that also returns its input's batch moments; residual and activation can follow at once.

    The four vectors are the given layer's own tensors. They are folded into scale and offset at construction, or at
    every call if `share`, so that a layer in training can be watched.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor
    offset: Tensor

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, *, share: bool = False) -> None:
        """Take over `norm`'s statistics and parameters.

        Raises:
            ValueError: a layer without running statistics, or of a class that may compute something else.
        """
        super().__init__()
        reason = self.why_not(norm)
        if reason:
            raise ValueError(f"norm: {reason}")
        self.eps, self.share = norm.eps, share
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("weight", None if norm.weight is None else norm.weight.detach())
        self.register_buffer("bias", None if norm.bias is None else norm.bias.detach())
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)
        self._derive()

    def _derive(self) -> None:
        if not self.share:
            self.scale, self.offset = self._fold()
            self._vectors = self.running_mean.to(self.scale.dtype), self.scale, self.offset

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DerivedLayer:
        """Move or convert the layer: its vectors follow to a device, but not to a dtype that is too coarse for them."""

        def converted(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if result.dtype == tensor.dtype:
                return result
            return tensor.to(result.device, accumulation_dtype(result.dtype))

        return super()._apply(converted, recurse)

    @staticmethod
    def why_not(norm: nn.Module) -> str:
        """Why `norm` has no such form, or empty."""
        if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
            return f"{type(norm).__name__} may compute something else than BatchNorm2d"
        if has_hooks(norm):
            return "its hooks may compute something else than BatchNorm2d"
        return "no running statistics" if norm.running_mean is None else ""

    def forward(
        self, x: Tensor, residual: Tensor | None = None, act: int = NONE, slope: float = 0.0, moments: bool = True
    ) -> Tensor | tuple[Tensor, Moments]:
        """x (B, C, H, W) -> act(bn(x) [+ residual]) of the same shape and, if asked for, the moments of x."""
        if not moments and pick("bn_act_moments", x.device.type, x.dtype) == "reference":
            return self._plain(x, residual, act, slope)
        shift, scale, offset = self.vectors()
        fits = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        fused = (x, shift, scale, offset, residual, act, slope) if fits else (x, shift, scale, offset, None, NONE)
        found: Moments | None = None
        if moments:
            y, found = bn_act_moments_folded(*fused)
        else:
            y = bn_act_folded(*fused)
        if residual is not None and not fits:
            y = activate(y + residual, act, slope)  # a broadcast sum: no fused form
        return y if found is None else (y, found)

    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """shift, scale and offset: y = (x - shift) * scale + offset."""
        if not self.share:
            return self._vectors
        scale, offset = self._fold()
        return self.running_mean.to(scale.dtype), scale, offset

    def _plain(self, x: Tensor, residual: Tensor | None, act: int, slope: float) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return activate(y if residual is None else y + residual, act, slope)

    def _fold(self) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(self.running_var.dtype)
        scale = torch.rsqrt(self.running_var.to(dtype) + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.to(dtype)
        offset = torch.zeros_like(scale) if self.bias is None else self.bias.to(dtype)
        return scale, offset


def is_frozen_batchnorm(module: nn.Module) -> bool:
    """Whether a layer is torchvision's or detectron2's FrozenBatchNorm2d, or timm's with an activation: BatchNorm2d by
    what it computes, and no subclass of it.
    """
    return type(module).__name__ in ("FrozenBatchNorm2d", "FrozenBatchNormAct2d") and hasattr(module, "running_var")


def parts_of_batchnorm_act(norm: nn.Module) -> tuple[nn.BatchNorm2d, nn.Module] | None:
    """A BatchNorm2d around the same tensors, and the activation behind it, of timm's BatchNormAct2d; else None."""
    home = type(norm).__module__.partition(".")[0]
    if type(norm).__name__ != "BatchNormAct2d" or home != "timm" or not isinstance(norm, nn.BatchNorm2d):
        return None
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)
    if has_hooks(norm) or not isinstance(act, nn.Module) or not isinstance(drop, nn.Identity):
        return None
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, device="meta")
    plain.running_mean, plain.running_var = norm.running_mean, norm.running_var
    if norm.affine:
        plain.weight, plain.bias = norm.weight, norm.bias
    return plain.eval(), act


class WatchedBatchNorm(nn.Module):
    """Any other BatchNorm over (B, C, H, W): its own eval output, and its input's moments."""

    norm: nn.Module

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    @property
    def running_mean(self) -> Tensor:
        """(C,)"""
        mean = self.norm.running_mean
        assert isinstance(mean, Tensor)
        return mean

    @property
    def running_var(self) -> Tensor:
        """(C,)"""
        var = self.norm.running_var
        assert isinstance(var, Tensor)
        return var

    def forward(self, x: Tensor, moments: bool = True) -> Tensor | tuple[Tensor, Moments]:
        """x (B, C, H, W) -> the layer's output and, if asked for, the moments of x."""
        y: Tensor = self.norm(x)
        return (y, batch_moments(x, self.running_mean)) if moments else y
