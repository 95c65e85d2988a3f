"""One-line messages for failures in a phase, each naming the setting to change, and signs of a collapsed run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from dfkd_fast.models.teacher import FrozenNet


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
    if not names:  # nothing is learned: what is not finite came in
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


VANISHED = 1e-3
"""a mean `kd` below this share of the run's greatest: teacher and student say the same of every image"""
FEW = 16
"""images of which nothing is concluded, if there are fewer"""


class CollapseWatch:
    """Looks at what phases have left. No step waits for it, and it draws no random number."""

    def __init__(self, teacher: FrozenNet, runtime: Runtime, config: MethodConfig, say: Callable[[str], None]) -> None:
        """`say` prints a line."""
        self.teacher, self.runtime, self.say = teacher, runtime, say
        self.epochs, self.warmup_epochs = config.epochs, config.warmup_epochs
        self._greatest = 0.0
        self._said: set[str] = set()

    def learned(self, epoch: int, means: Mapping[str, float]) -> None:
        """After a phase that taught the student: the means of its loss terms."""
        kd = means.get("kd")
        if kd is None:
            return
        self._greatest = max(self._greatest, kd)
        if kd < VANISHED * self._greatest:
            self._warn(
                "kd",
                f"kd has fallen to {kd:.2g} in epoch {epoch + 1}, from {self._greatest:.2g}: the images no longer tell "
                "teacher and student apart, so that nothing is learned from them",
            )

    def made(self, epoch: int, images: Tensor, labels: Tensor) -> None:
        """After a phase that made images: the newest, (B, H, W, C) uint8 or (B, C, H, W), with their labels (B,).

        Those of the warm-up, where a generator has only begun, and of another size than the teacher's are left out.
        """
        info = self.teacher.info
        planes = images.movedim(-1, 1) / 255 if images.dtype == torch.uint8 else images
        if epoch < self.warmup_epochs or len(planes) < FEW or planes.shape[-2:] != info.image_size:
            return
        runtime = self.runtime
        mean, std = (torch.tensor(values, device=runtime.device).view(1, -1, 1, 1) for values in (info.mean, info.std))
        view = (planes.to(runtime.device) - mean) / std
        view = view.to(runtime.master_dtype, memory_format=runtime.memory_format)
        with torch.no_grad(), runtime.autocast():
            found = self.teacher.logits(view).argmax(1)
        if len(found.unique()) == 1:
            wanted = len(labels.unique())
            self._warn(
                "images",
                f"all {len(found)} newest images of epoch {epoch + 1} are class {int(found[0])} to the teacher, of "
                f"{info.num_classes} classes; their labels name {wanted}",
            )

    def evaluated(self, epoch: int, predictions: Tensor, num_classes: int) -> None:
        """After an evaluation: the class (N,) that the student gave each test image. Early epochs say little."""
        if len(predictions) >= FEW and 2 * (epoch + 1) > self.epochs and len(predictions.unique()) == 1:
            self._warn(
                "student",
                f"the student gives all {len(predictions)} test images class {int(predictions[0])}, of {num_classes} "
                f"classes, in epoch {epoch + 1}",
            )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self.say(f"warning: collapse: {text}")
