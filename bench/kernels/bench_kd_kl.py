"""The distillation loss, forward and backward, against torch's own functions; the same with priorities written back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from report import Goal

from dfkd_kernels import PrioritySampler, kd_kl, kd_kl_priority
from dfkd_kernels.priority import reference

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


def bench_priority(compare, device):
    """A student step's loss of SSD-KD with 10^6 slots: the tree in plain torch, our two operators, our one."""
    student, teacher = (torch.randn(SHAPE, device=device).requires_grad_(i == 0) for i in range(2))
    sampler = PrioritySampler(10**6, device=device)
    tree = (sampler.leaves, sampler.sums, sampler.counts, sampler.capacity)
    indices, is_weights = torch.randint(0, 10**6, SHAPE[:1], device=device), torch.rand(SHAPE[0], device=device)

    def in_torch():
        log_q = F.log_softmax(student / TEMPERATURE, dim=1)
        rows = F.kl_div(log_q, F.softmax(teacher / TEMPERATURE, dim=1), reduction="none").sum(1) * TEMPERATURE**2
        reference.update(*tree, indices, is_weights * rows.detach(), sampler.alpha, sampler.eps)
        return rows

    def apart():
        rows = kd_kl(student, teacher, TEMPERATURE)
        sampler.update(indices, is_weights * rows.detach())
        return rows

    def ours():
        return kd_kl_priority(student, teacher, indices, is_weights, sampler, TEMPERATURE)

    forms = {"eager": in_torch, "kd_kl, then update": apart, "ours": ours}
    variants = {
        name: lambda form=form: torch.autograd.grad((is_weights * form()).mean(), student)
        for name, form in forms.items()
    }
    goals = (Goal(numerator="eager", denominator="ours", bound=2.0),) if device.type == "cpu" else ()
    compare("kd_kl_priority", variants, shape=SHAPE, dtype=torch.float32, goals=goals, inner=5)
