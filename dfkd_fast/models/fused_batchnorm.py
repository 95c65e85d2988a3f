"""`--bn.fused`: whether a run's networks in training take the fused form of BatchNorm, and giving it to them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_kernels import fuse_batchnorm_
from dfkd_kernels.backend import pick, why_not

FusedBatchNorm = Literal["off", "on", "auto"]


def takes_fused_batchnorm(choice: FusedBatchNorm, runtime: Runtime) -> bool:
    """Whether networks are given it: always with "on"; with "auto" where it has been measured to be faster, on a CPU
    that has the C++ form, in bf16 or in contiguous layout, without torch.compile, which fuses these passes itself.

    Raises UserError for "on" where there is no fused form, or BatchNorm is of the batches of several processes.
    """
    device = runtime.device.type
    if choice == "on":
        if runtime.global_batch:
            raise UserError("--bn.fused on: does not go with --bn.scope global; choose off or auto")
        if pick("bn_act_train", device, torch.float32) == "reference":
            reason = why_not("bn_act_train", "triton" if device == "cuda" else "native", device, torch.float32)
            raise UserError(f"--bn.fused on: {reason or 'the reference is chosen'}; choose off or auto")
        return True
    native = device == "cpu" and pick("bn_act_train", device, torch.float32) == "native"
    gains = runtime.precision == "bf16" or not runtime.channels_last  # fp32, channels-last: within 1 %
    return choice == "auto" and native and gains and runtime.compilation == "off" and not runtime.global_batch


def give_fused_batchnorm(network: nn.Module, choice: FusedBatchNorm, runtime: Runtime, *, trace: bool) -> None:
    """Fuse a network's BatchNorm2d layers with what follows them, in place, if the run takes that.

    `trace`: also what its own Python does behind a layer, where torch.fx can see it.
    """
    if takes_fused_batchnorm(choice, runtime):
        fuse_batchnorm_(network, trace=trace)
