"""What a generator without labels is asked for: all classes equally often, and features that are strongly excited.

DAFL (Chen et al., ICCV 2019, arXiv:1904.01186).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_balance(logits: Tensor) -> Tensor:
    """sum_c p_c log p_c, p the mean of softmax(logits) over the batch: minus its entropy, -log K where all classes are
    equally frequent.

    Logits (B, K) -> scalar in [-log K, 0], at least float32. DAFL's information entropy loss; DFQ has it, too. By
    logarithms throughout, so that a class that no image has gives 0 and no NaN.
    """
    log_shares = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
    log_mean = torch.logsumexp(log_shares, dim=0) - math.log(len(logits))
    return (log_mean.exp() * log_mean).sum()


def activation(features: Tensor) -> Tensor:
    """Minus the mean absolute feature. Features (B, D), what the classifier reads -> scalar, at least float32.

    DAFL's activation loss: real images excite a network more than noise does.
    """
    return -features.to(torch.promote_types(features.dtype, torch.float32)).abs().mean()
