"""What can go wrong in a phase, in one line that names the setting to change."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch import Tensor

from dfkd_fast.config.setting import stated_of
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.device.switches import named_operator
from dfkd_fast.errors import UserError
from dfkd_fast.messages.refusals import is_out_of_memory
from dfkd_fast.methods.base import MethodConfig


@contextmanager
def explained(phase: str, epoch: int, config: MethodConfig, runtime: Runtime) -> Iterator[None]:
    """Raise UserError where the block runs out of memory, cannot be compiled, or meets an operator that
    `--deterministic` does not allow; any other error as it is.

    `epoch` counts from 0 and is shown from 1. The phase is lost: the last phase boundary is on disk.
    """
    where = f"{phase} of epoch {epoch + 1}"
    try:
        with named_operator():
            yield
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{batch_setting(phase, config, runtime.shares)}: {where} ran out of memory on "
                f"{runtime.describe()}; choose a smaller batch or --precision bf16, or go on from the last phase with "
                "--resume on a larger device"
            ) from error
        if is_compile_failure(error):
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"--compile {runtime.compilation}: {where} could not be compiled ({reason}); choose --compile off"
            ) from error
        raise


def batch_setting(phase: str, config: MethodConfig, shares: int) -> str:
    """The flag that decides how much memory a phase takes, with its value: `config` is one of so many shares."""
    if phase == "synthesis":
        return f"--method.synthesis-batch-size {config.synthesis_batch_size * shares}"
    return f"--method.batch-size {config.batch_size * shares}"


def is_compile_failure(error: Exception) -> bool:
    """Whether torch.compile, or a compiler that it called, gave up."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and importing it takes seconds
        return False
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return isinstance(error, TorchDynamoException | CppCompileError | InvalidCxxCompiler)


def rate_settings(learning: Sequence[str], config: MethodConfig) -> str:
    """The flags, with their values, of the learning rates in the phases that `learning` names."""
    names = ["student_lr"] if "distillation" in learning else []
    if "synthesis" in learning:
        rates = [item.name for item in fields(config) if stated_of(type(config), item.name).synthesis_rate]
        names += rates
    if not names:  # nothing is learnt: what is not finite came in
        return "--precision"
    return " or ".join(f"--method.{name.replace('_', '-')} {getattr(config, name)}" for name in names)


def check_finite(
    phase: str, epoch: int, state: Iterable[Tensor], config: MethodConfig, *, learning: Sequence[str] = ()
) -> None:
    """Raise UserError where any number of a run's state is not finite, so that no checkpoint holds it.

    `learning`: the phases whose learning rates were at work, where the phase is not the only one. Waits for the device
    once, at the end of a phase: one check of what the steps left stands for one of every step, because NaN in weights,
    statistics or moments stays there.
    """
    numbers = [value.detach() for value in state if value.is_floating_point() and value.numel()]
    if not torch.stack([norm.float() for norm in torch._foreach_norm(numbers, float("inf"))]).isfinite().all():
        raise diverged(phase, epoch, config, learning=learning)


def diverged(phase: str, epoch: int, config: MethodConfig, *, learning: Sequence[str] = ()) -> UserError:
    """What to say of a loss, or a state, that is not finite."""
    return UserError(
        f"{rate_settings(learning or (phase,), config)}: {phase} of epoch {epoch + 1} diverged, its numbers are not "
        "finite; choose a lower rate, or --precision fp32; the phases before it are kept"
    )
