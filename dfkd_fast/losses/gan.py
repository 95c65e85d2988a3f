"""Losses of a GAN with an auxiliary discriminative classifier, and what HiDFD adds for a GAN that has few real images.

Hou et al., *Conditional GANs with Auxiliary Discriminative Classifier* (ICML 2022); Tang et al., *Hybrid Data-Free
Knowledge Distillation* (AAAI 2025, arXiv:2412.13525). Logits of the auxiliary classifier are (B, 2K): class y of a real
image is 2y, that of a generated one 2y + 1. All losses are minimised, and computed in at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_gan(real: Tensor, fake: Tensor, *, hinge: bool = False) -> Tensor:
    """The discriminator's side, -L_d of Eq. 1, for scores (B,) that are logits of "real".

    -E[log D(real)] - E[log(1 - D(fake))], D the sigmoid; with `hinge` what BigGAN has in its place.
    """
    real, fake = _wide(real), _wide(fake)
    if hinge:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_gan(fake: Tensor, *, hinge: bool = False) -> Tensor:
    """The generator's side, L_g of Eq. 1: E[log(1 - D(fake))]; with `hinge` minus the mean score."""
    fake = _wide(fake)
    return -fake.mean() if hinge else -F.softplus(fake).mean()


def discriminator_classes(real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor) -> Tensor:
    """Cross-entropies of real images with 2y and of generated ones with 2y + 1: the logarithms of Eq. 1, minimised."""
    return F.cross_entropy(_wide(real), 2 * real_labels) + F.cross_entropy(_wide(fake), 2 * fake_labels + 1)


def generator_classes(fake: Tensor, labels: Tensor) -> Tensor:
    """-E[log P(2y)] + E[log P(2y + 1)]: generated images are to be taken for real ones of their class (Eq. 1)."""
    fake = _wide(fake)
    return F.cross_entropy(fake, 2 * labels) - F.cross_entropy(fake, 2 * labels + 1)


def feature_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean over rows of the L2 norm of their difference, (B, D) each -> scalar: Eqs. 8, 9 and 14."""
    return torch.linalg.vector_norm(_wide(first) - _wide(second), dim=1).mean()


def smoothed_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """sum_c weights_c p_c log p_c with p the batch's mean softmax (Eq. 12): small where p is spread over the classes.

    Logits (B, K) of the teacher, weights (K,) -> scalar. A class whose probability underflows has no gradient.
    """
    shares = torch.softmax(_wide(logits), dim=1).mean(dim=0)
    return (weights * shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum()


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
