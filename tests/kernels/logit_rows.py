"""Random logits, and the KL that the tests of kd_kl and kd_kl_priority hold theirs against."""

import torch
import torch.nn.functional as F
from operator_contract import DEVICE


def logits(shape, dtype=torch.float32, *, seed=0, spread=3.0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(shape, generator=generator) * spread).to(DEVICE, dtype)
    return values.requires_grad_(requires_grad)


def torch_kl(student, teacher, temperature):
    """Independent of the package: F.kl_div on probabilities, float64."""
    log_q = F.log_softmax(student.double() / temperature, 1)
    p = F.softmax(teacher.double() / temperature, 1)
    return temperature**2 * F.kl_div(log_q, p, reduction="none").sum(1)
