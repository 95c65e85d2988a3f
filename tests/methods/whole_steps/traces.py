"""Numbers of a method's steps side by side: the toolkit's and those of an independent statement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Trace = dict[str, Tensor]
"""every number of a comparison, by what it is"""


def check_same(ours: Trace, theirs: Trace, tolerance: float = 1e-9) -> None:
    """Every number of both, to `tolerance`, and the weights behind a step to ten times that. A bias in front of a
    BatchNorm has a gradient that is 0 but for rounding, of which Adam makes a step a million times as large.
    """
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:9]
    allowed = {name: 10 * tolerance if " weight " in name or " start." in name else tolerance for name in ours}
    apart = {name: distance(ours[name], theirs[name]) for name in ours}
    wrong = {name: value for name, value in apart.items() if not value <= allowed[name]}
    assert not wrong, f"{len(wrong)} of {len(apart)} differ, the first: {list(wrong.items())[:5]}"


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the tensor's largest number, or to 0.1 where all are smaller."""
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float64, ours.dtype
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=0.1))


def check_at_work(trace: Trace, *terms: str) -> None:
    """Each of these terms is there, and not 0 in most steps."""
    for term in terms:
        values = [float(value.abs()) for name, value in trace.items() if name.endswith(f" {term}")]
        assert sum(value > 1e-6 for value in values) > len(values) / 2, (term, values)


def check_mixed(shares: Sequence[float]) -> None:
    """In most steps a mask lets some images through, and others not."""
    assert sum(0 < share < 1 for share in shares) > len(shares) / 2, shares


def check_seen(changed: Trace, expected: Trace, least: float = 1e-7) -> None:
    """A changed recipe is not taken for the published one."""
    apart = changed.keys() != expected.keys() or max(distance(changed[k], expected[k]) for k in changed) > least
    assert apart, "the comparison does not see it"
