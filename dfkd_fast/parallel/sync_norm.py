"""Train-mode BatchNorm with the statistics of all ranks' batches, on any device and backend."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.errors import UserError
from dfkd_fast.parallel import group as process_group
from dfkd_fast.parallel.global_batch import GlobalBatch

M = TypeVar("M", bound=nn.Module)


def convert_sync_batchnorm(module: M, global_batch: GlobalBatch, flag: str) -> M:
    """Give every BatchNorm of a module the global batch's statistics, in place: parameters and buffers stay the same
    tensors. Raises UserError, naming `flag`, for a layer that may compute something else.
    """
    if not global_batch:
        return module
    for name, layer in module.named_modules():
        if type(layer) in _FORMS:
            layer.__class__ = _FORMS[type(layer)]
            layer.global_batch = global_batch
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, _JoinedNorm):
            kind = type(layer).__name__
            raise UserError(
                f"{flag}: its layer {name} is a {kind}, which --bn.scope global cannot synchronise; choose rank"
            )
    return module


class _JoinedNorm(nn.modules.batchnorm._BatchNorm):
    global_batch: GlobalBatch

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *), this rank's rows -> the same shape."""
        self._check_input_dim(x)
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        y, mean, var = _Normalize.apply(x, self.weight, self.bias, self.eps, self.global_batch)
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            count = x.numel() // x.shape[1] * self.global_batch.size
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype) * (count / (count - 1)), momentum)
        return y


class JoinedNorm1d(_JoinedNorm, nn.BatchNorm1d):
    """BatchNorm1d of the global batch."""


class JoinedNorm2d(_JoinedNorm, nn.BatchNorm2d):
    """BatchNorm2d of the global batch."""


class JoinedNorm3d(_JoinedNorm, nn.BatchNorm3d):
    """BatchNorm3d of the global batch."""


_FORMS: dict[type, type] = {
    nn.BatchNorm1d: JoinedNorm1d,
    nn.BatchNorm2d: JoinedNorm2d,
    nn.BatchNorm3d: JoinedNorm3d,
}


class _Normalize(torch.autograd.Function):
    """(x, weight, bias) -> (y, mean, biased variance), the latter two of the global batch and without gradient.

    One message each way. What a rank sends back is what its rows do to the others' through mean and variance.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, global_batch: GlobalBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.stack(torch.var_mean(wide, [0, *range(2, x.dim())], correction=0))
        each = own.new_zeros(global_batch.size, *own.shape)
        each[global_batch.rank] = own
        process_group.all_reduce(each)
        # moments of each, then between them: sums of squares about zero would lose digits
        var, mean = each[:, 0].mean(0) + each[:, 1].var(0, correction=0), each[:, 1].mean(0)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps))
        ctx.global_batch, ctx.eps = global_batch, eps
        y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        # the rank's own backward pass, then what the mean of its sums differs from the mean of all
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        count = x.numel() // x.shape[1]
        own = torch.stack([dbias, dweight]) / count
        all_ranks = own.clone()
        process_group.all_reduce(all_ranks)
        surplus = own - all_ranks / ctx.global_batch.size
        gain = scale if weight is None else scale * weight.to(scale.dtype)
        slope = gain * surplus[1] * scale
        shape = [1, -1, *[1] * (x.dim() - 2)]
        offset = (gain * surplus[0] - slope * mean).view(shape)
        dx = dx + (x * slope.view(shape) + offset).to(dx.dtype)
        return dx, *((None, None) if weight is None else (dweight, dbias)), None, None
