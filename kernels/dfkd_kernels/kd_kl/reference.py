"""The specification of `kd_kl` in plain torch: differentiable, on any device, exact in float64."""

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: the dtype of accumulation and result."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def kd_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row. Logits (B, K) -> (B,)."""
    dtype = compute_dtype(student_logits, teacher_logits)
    log_q = torch.log_softmax(student_logits.to(dtype) / temperature, dim=1)
    log_p = torch.log_softmax(teacher_logits.to(dtype) / temperature, dim=1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)
