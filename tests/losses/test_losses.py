"""Loss terms against an independent float64 version written from their formulas, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.losses.generator import label_ce


def logits(rows: int = 5, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * 3
    return made[0].requires_grad_(), made[1].requires_grad_()


def softmax_row(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    """KL(teacher || student) of each row, in Python floats."""
    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax_row(s, temperature), softmax_row(t, temperature)
        rows.append(sum(pk * (math.log(pk) - math.log(qk)) for pk, qk in zip(p, q, strict=True)))
    return rows


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_kl_value(temperature: float) -> None:
    student, teacher = logits()
    expected = sum(divergence(student, teacher, temperature)) / len(student) * temperature**2
    assert kd_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_kd_kl_gradient() -> None:
    """d/ds = T (q - p) / B, the textbook gradient."""
    student, teacher = logits()
    kd_kl(student, teacher, 20.0).backward()
    q, p = torch.softmax(student / 20, 1), torch.softmax(teacher / 20, 1)
    torch.testing.assert_close(student.grad, (20 * (q - p) / len(student)).detach(), rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda s, t: kd_kl(s, t, 4.0), (student, teacher))


def test_label_ce() -> None:
    teacher, _ = logits()
    labels = torch.tensor([0, 6, 3, 3, 1])
    expected = -sum(
        math.log(softmax_row(row, 1.0)[label]) for row, label in zip(teacher.tolist(), labels.tolist(), strict=True)
    ) / len(labels)
    loss = label_ce(teacher, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    (found,) = torch.autograd.grad(loss, teacher)
    wanted = [
        [p - (column == label) for column, p in enumerate(softmax_row(row, 1.0))]
        for row, label in zip(teacher.tolist(), labels.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64) / 5, rtol=1e-9, atol=1e-12)
    assert label_ce(teacher.bfloat16(), labels).dtype == torch.float32


def test_disagreement_counts_agreeing_samples_only_but_divides_by_all() -> None:
    student, teacher = logits()
    with torch.no_grad():
        student[:2] = teacher[:2] + 0.1 * student[:2]  # rows 0 and 1 agree
        teacher[2:] = -student[2:]  # the others do not
    agree = [s.argmax() == t.argmax() for s, t in zip(student, teacher, strict=True)]
    assert 0 < sum(agree) < len(agree)
    rows = divergence(student, teacher, 1.0)
    expected = -sum(row for row, same in zip(rows, agree, strict=True) if same) / len(rows)
    assert disagreement(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert disagreement(student, teacher, masked=False).item() == pytest.approx(-sum(rows) / len(rows), rel=1e-9)


def test_disagreement_reaches_both_networks() -> None:
    """-(q - p) / B for the student's logits, -p (log p/q - KL) / B for the teacher's, where they agree."""
    student, teacher = logits()
    with torch.no_grad():
        student.copy_(teacher + 0.1 * student)
    disagreement(student, teacher).backward()
    for row, (s, t) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        q, p = softmax_row(s, 1.0), softmax_row(t, 1.0)
        agree = q.index(max(q)) == p.index(max(p))
        gaps = [math.log(pk) - math.log(qk) for pk, qk in zip(p, q, strict=True)]
        mean_gap = sum(pk * gap for pk, gap in zip(p, gaps, strict=True))
        to_student = [-agree * (qk - pk) / 5 for pk, qk in zip(p, q, strict=True)]
        to_teacher = [-agree * pk * (gap - mean_gap) / 5 for pk, gap in zip(p, gaps, strict=True)]
        assert student.grad[row].tolist() == pytest.approx(to_student, rel=1e-9, abs=1e-12)
        assert teacher.grad[row].tolist() == pytest.approx(to_teacher, rel=1e-9, abs=1e-12)
    assert student.grad.abs().sum() > 0
