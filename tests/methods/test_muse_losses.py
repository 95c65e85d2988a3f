"""MUSE's terms against Python loops over its equations, in float64: values and gradients to 1e-9."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dfkd_fast.losses.cam import cam_margin, gaussian_target
from dfkd_fast.methods.muse import class_embedding
from dfkd_fast.methods.muse.class_embedding import bounding, repelling, separation


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cam_margin_is_equations_5_and_6() -> None:
    """Value by loops; the gradient is -w/(B h w) where the map is below its target, 0 elsewhere."""
    features, weights = random(3, 5, 4, 2).requires_grad_(), random(6, 5, seed=1)
    labels = torch.tensor([2, 0, 5])
    target = gaussian_target(4, 2, peak=1.5, sigma=2.0, device=torch.device("cpu"))
    loss = cam_margin(features, weights, labels, 1.5, 2.0)
    loss.backward()
    total, grad = 0.0, torch.zeros_like(features)
    for b, label in enumerate(labels.tolist()):
        for h in range(4):
            for w in range(2):
                m = sum(float(weights[label, k] * features.detach()[b, k, h, w]) for k in range(5))
                total += max(0.0, float(target[h, w]) - m)
                if m < target[h, w]:
                    grad[b, :, h, w] = -weights[label] / 24
    assert loss.item() == pytest.approx(total / 24, rel=1e-9)
    torch.testing.assert_close(features.grad, grad, rtol=1e-9, atol=1e-9)
    assert 0 < (grad != 0).double().mean() < 1


def test_mean_activation_map_plus_bias_is_the_logit() -> None:
    features, weights, labels = random(3, 5, 4, 4), random(6, 5, seed=1), torch.tensor([2, 0, 5])
    logits = features.mean((2, 3)) @ weights.T
    far = 1e3  # no map reaches it, so nothing is cut off
    expected = far - logits[range(3), labels].mean().item()
    assert cam_margin(features, weights, labels, far).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (4, 4), (1, 6)])
def test_gaussian_target(height: int, width: int) -> None:
    found = gaussian_target(height, width, peak=3.0, sigma=2.0, device=torch.device("cpu"))
    for h in range(height):
        for w in range(width):
            distance = (h - (height - 1) / 2) ** 2 + (w - (width - 1) / 2) ** 2
            assert found[h, w].item() == pytest.approx(3 * math.exp(-distance / 8), rel=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("radius", [0.5, 2.1, 9.0])
def test_in_out_game(radius: float, per_sample: bool) -> None:
    """Eqs. 10 and 12 by loops; the gradient is +-2 (e - c) / (B D) where the hinge is open."""
    embedded, centres = random(4, 6).requires_grad_(), random(4, 6, seed=3)
    errors = (embedded - centres).tolist()
    each = [sum(error**2 for error in row) / 6 for row in errors]
    distances = each if per_sample else [sum(each) / 4]
    for loss, sign in ((bounding, 1.0), (repelling, -1.0)):
        found = loss(embedded, centres, radius, per_sample=per_sample)
        hinges = [max(0.0, sign * (distance - radius)) for distance in distances]
        assert found.item() == pytest.approx(sum(hinges) / len(hinges), rel=1e-9, abs=1e-12)
        is_open = [hinge > 0 for hinge in hinges] * (1 if per_sample else 4)
        expected = [
            [sign * 2 * error / 24 * opened for error in row] for row, opened in zip(errors, is_open, strict=True)
        ]
        (grad,) = torch.autograd.grad(found, embedded)
        torch.testing.assert_close(grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_hinge_per_sample_differs_from_the_hinge_on_the_mean() -> None:
    embedded, centres = torch.tensor([[0.0], [4.0]]), torch.zeros(2, 1)
    assert bounding(embedded, centres, 8.0) == 0
    assert bounding(embedded, centres, 8.0, per_sample=True) == 4
    assert repelling(embedded, centres, 8.0) == 0
    assert repelling(embedded, centres, 8.0, per_sample=True) == 4


def test_half_precision_is_compared_in_float32() -> None:
    embedded, centres = random(4, 6).bfloat16(), random(4, 6, seed=3).float()
    assert bounding(embedded, centres, 0.1).dtype == torch.float32
    exact = (embedded.double() - centres.double()).square().mean().item()
    assert bounding(embedded, centres, 0.0).item() == pytest.approx(exact, rel=1e-6)


def test_separation_is_the_smallest_distance_of_two_classes() -> None:
    centres = random(7, 5)
    pairs = [(centres[i] - centres[j]).square().mean().item() for i in range(7) for j in range(i)]
    assert separation(centres).item() == pytest.approx(min(pairs), rel=1e-9)
    twins = torch.cat([centres, centres[:1]])  # ImageNet's two cranes
    assert separation(twins).item() == 0


def test_separation_takes_blocks_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what it is at once, in whichever block the nearest two are."""
    centres = random(23, 5)
    whole = separation(centres)
    for rows in (1, 4, 22, 23):
        monkeypatch.setattr(class_embedding, "_ROWS", rows)
        assert torch.equal(separation(centres), whole)
        assert torch.equal(separation(centres.flip(0)), whole)
