"""BatchNorm2d whose call may also add a residual and activate: one operator in training, torch's own elsewhere."""

from __future__ import annotations

from torch import Tensor, nn

from ..backend import pick
from ..bn_act_train.ops import bn_act_train_checked
from ..bn_act_train.reference import activate


class BatchNormAct2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the same parameters, buffers, arguments and results, and two more arguments of its call.

    In training, where a fast form can run, a call is one `bn_act_train`. In evaluation, and for float64, it is
    torch's batch_norm, sum and activation, bit for bit.
    """

    def forward(  # torch's own name of the first argument, which callers may give
        self,
        input: Tensor,  # noqa: A002
        residual: Tensor | None = None,
        slope: float = 1.0,
    ) -> Tensor:
        """input (N, C, H, W) -> act(bn(input) [+ residual]) of the same shape; act(v) is v above zero, slope * v below.

        Slope 1 is no activation, 0 is relu.

        Raises:
            ValueError: another rank, or one value a channel in training.
        """
        own = self.running_mean is None or self.running_var is None
        if not (self.training or own) or pick("bn_act_train", input.device.type, input.dtype) == "reference":
            return activate(super().forward(input), residual, slope)
        self._check_input_dim(input)
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean over all batches; on the device, as nobody waits for it
                momentum = 1.0 / self.num_batches_tracked
        running = None
        if self.running_mean is not None and self.running_var is not None and self.track_running_stats:
            running = self.running_mean, self.running_var
        fits = residual is None or (residual.shape == input.shape and residual.dtype == input.dtype)
        fused = (residual, slope) if fits else (None, 1.0)
        y = bn_act_train_checked(input, running, self.weight, self.bias, momentum, self.eps, *fused)
        return y if fits else activate(y, residual, slope)
