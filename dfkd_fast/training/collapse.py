"""Signs that a run has collapsed, said once each, with their figures; the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import MethodConfig
from dfkd_fast.models.teacher import FrozenNet

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
        if epoch < self.warmup_epochs or len(planes) < FEW or planes.shape[-1] != info.image_size:
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
