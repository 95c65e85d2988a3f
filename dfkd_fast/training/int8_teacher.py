"""`--teacher-precision int8` in a run: which may have it, calibration by the pool's images, and what is reported."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dfkd_fast.data.stream import LabelledImages
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import Method
from dfkd_fast.models.int8_answers import FLAG
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.training.evaluate import evaluate

IMAGES = 512
"""of the pool that calibrate, and as many others that both answers are compared on"""
_BATCH = 64


def check_int8(method: Method, teacher: FrozenNet, *, is_cached: bool) -> None:
    """Raise UserError where a student step reads more of the teacher than logits of a pool's images, or no answer."""
    if teacher.int8 is None:
        return
    reads = method.student_reads()
    if method.loop == "stepwise":
        raise UserError(f"{FLAG}: this method keeps no images to calibrate it by; choose same")
    if len(method.pools()) > 1:
        raise UserError(f"{FLAG}: for images of one size, and this method has {len(method.pools())}; choose same")
    if reads.teacher or reads.teacher_features or teacher.window.is_led:
        raise UserError(f"{FLAG}: this student learns from more than logits of fixed views; choose same")
    if is_cached:
        raise UserError(f"{FLAG}: with --cache-teacher-logits no step asks the teacher; leave one of them out")


@torch.no_grad()
def calibrate(teacher: FrozenNet, pool: Pool) -> None:
    """Before the first student step: quantise a teacher whose answers are to be int8, by images of the pool, and say
    how often it agrees with itself on others.
    """
    int8, size = teacher.int8, len(pool)
    if int8 is None or int8.is_calibrated:
        return
    view, count = AugmentSpec(info=teacher.info, pad=0, flip=False), min(IMAGES, (size + 1) // 2)

    def views(slots: Tensor) -> Iterator[Tensor]:
        for part in slots.split(_BATCH):
            yield pool.read(part, view).images

    slots = torch.arange(size, device=pool.runtime.device)
    int8.calibrate(views(slots[:count]))
    others = slots[count : count + IMAGES] if size > 1 else slots
    same = 0
    for part in views(others):
        with pool.runtime.autocast():
            same += int((int8(part).argmax(1) == teacher.logits(part).argmax(1)).sum())
    int8.agreement = same / len(others)
    note(
        f"teacher in int8: agrees with itself in {pool.runtime.precision} on {int8.agreement:.4f} of {len(others)} "
        f"images of the pool, calibrated by {count} others"
    )


def int8_figures(
    teacher: FrozenNet, test: LabelledImages | None, runtime: Runtime, *, batch_size: int
) -> dict[str, float]:
    """For run.json: the agreement and, with test images, the accuracy of int8 answers; nothing where there are none."""
    int8 = teacher.int8
    if int8 is None or int8.agreement is None:
        return {}
    found = {"teacher_int8_agreement": int8.agreement}
    if test is not None:
        found["teacher_int8_top1"] = evaluate(
            int8, test, info=teacher.info, runtime=runtime, batch_size=batch_size
        ).top1
        note(f"teacher in int8: top-1 {found['teacher_int8_top1']:.4f} on {len(test)} images of {test.name}")
    return found
