"""KD's whole student steps in float64, from its paper (arXiv:1503.02531) and the released script's description, not
from the code: KL at temperature 1, and a tenth of the cross-entropy with the real labels. There are no synthesis steps.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from follow import arena, batch_of, descend, follow_student, note_statistics, state_of, views
from plain import Sgd, cross_entropy, kl, look
from toy_networks import INFO
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast.methods.base import CollectedImages
from dfkd_fast.methods.kd import Kd, KdConfig

CONFIG = KdConfig(ce_weight=0.1)
EPOCH = 122  # 121 distilled ones have gone: the rate has fallen once


def batches() -> list[Any]:
    return [batch_of(views(12, seed), torch.arange(12) * (seed + 1) % INFO.num_classes) for seed in range(2)]


def ours(config: KdConfig) -> Trace:
    torch.manual_seed(9)
    place, trace = arena(collected=CollectedImages.noise(INFO, 9)), Trace()
    follow_student(place.trainer(place.method(Kd, config)), EPOCH, batches(), trace)
    return trace


def published() -> Trace:
    place, trace = arena(), Trace()
    teacher, student, sgd = state_of(place.teacher), state_of(place.student), Sgd(0.9, 1e-4)
    for step, batch in enumerate(batches()):
        own, other = look(student, batch.images, train=True), look(teacher, batch.images)
        terms = {"kd": kl(own.logits, other.logits).mean(), "ce": cross_entropy(own.logits, batch.labels).mean()}
        key = f"student {EPOCH} step {step}"
        descend(trace, key, terms, terms["kd"] + 0.1 * terms["ce"], student, sgd, 0.01)
        note_statistics(trace, key, student)
    return trace


@functools.cache
def statement() -> tuple[Trace, Trace]:
    return ours(CONFIG), published()


def test_steps_are_the_published_ones() -> None:
    found, expected = statement()
    check_at_work(expected, "kd", "ce")
    check_same(found, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ce_weight", 0.11),
        ("kd_weight", 1.01),
        ("kd_temperature", 1.01),
        ("student_lr", 0.101),
        ("student_lr_steps", (121, 121)),
        ("student_weight_decay", 2e-4),
    ],
)
def test_the_comparison_sees_a_change(field: str, value: Any) -> None:
    check_seen(ours(replace(CONFIG, **{field: value})), statement()[1])
