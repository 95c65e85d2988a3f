"""The distillation loss, forward and backward, against torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from report import Goal

from dfkd_kernels import kd_kl

SHAPE = (256, 1000)
TEMPERATURE = 4.0


def eager(student, teacher):
    """T^2 KL(teacher || student), as distillation codes write it."""
    log_q = F.log_softmax(student / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(log_q, F.softmax(teacher / TEMPERATURE, dim=1), reduction="batchmean")


@pytest.mark.parametrize("to_teacher", [False, True], ids=["student", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_loss(dtype, to_teacher, compare, device):
    student, teacher = (torch.randn(SHAPE, device=device).to(dtype).requires_grad_() for _ in range(2))
    inputs = [student, teacher] if to_teacher else [student]
    target = teacher if to_teacher else teacher.detach()
    forms = {
        "eager": eager,
        "compiled": torch.compile(eager, fullgraph=True, dynamic=False),
        "ours": lambda s, t: kd_kl(s, t, TEMPERATURE, reduction="batchmean"),
    }
    variants = {
        name: lambda form=form: torch.autograd.grad(form(student, target), inputs) for name, form in forms.items()
    }
    goals = (Goal(numerator="eager", denominator="ours", bound=2.0),) if device.type == "cpu" else ()
    name = f"kd_kl, gradient to {'both' if to_teacher else 'the student'}"
    compare(name, variants, shape=SHAPE, dtype=dtype, goals=goals, inner=5)
