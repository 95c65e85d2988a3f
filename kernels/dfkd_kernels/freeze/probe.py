"""Two images of noise through the original network, to hold its frozen forms against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .answers import logits_of

_SIZES = (32, 64, 128, 224)
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""share of the largest logit: what rounding, or TF32 on a GPU, may do; half precision has ten times that of float32"""


class Probe:
    """The images and what the original answers; `expected` is None where the two cannot be compared."""

    def __init__(self, images: Tensor | None, expected: Tensor | None, notes: Sequence[str]) -> None:
        self.images, self.expected, self.notes = images, expected, list(notes)

    def difference(self, frozen: Callable[..., tuple[Tensor, ...]]) -> str:
        """By how much the frozen network's logits differ, or empty where that is rounding."""
        assert self.images is not None
        assert self.expected is not None
        with torch.no_grad(), fixed_draws(self.images):
            found = frozen(self.images, moments=False)[0]
        if found.shape != self.expected.shape:
            return f"their shape, {tuple(found.shape)} and not {tuple(self.expected.shape)}"
        gap = (found.double() - self.expected.double()).abs().max().item()
        allowed = _TOLERANCE.get(found.dtype, 0.1) * max(self.expected.double().abs().max().item(), 1e-6)
        return "" if gap <= allowed else f"{gap:.2g}"


def make_probe(original: nn.Module, shape: Sequence[int] | None) -> Probe:
    """Ask the original, in eval mode. Raises ValueError where its answer holds no logits."""
    like = next(original.parameters(), torch.zeros(()))
    if isinstance(like, FakeTensor) or like.is_meta:
        return Probe(None, None, ["network: not compared with the original, its tensors hold no values"])
    for each in _shapes(original, shape):
        images = torch.randn(2, *each, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
        try:
            with torch.no_grad(), fixed_draws(images):
                answer = original(images)
        except Exception as error:  # the network's own Python, at a size that it may not take
            failure = error
            continue
        expected, note = logits_of(answer)
        notes = [note] if note else []
        if not expected.isfinite().all():
            return Probe(None, None, [*notes, "network: not compared with the original, whose logits are not finite"])
        return Probe(images, expected, notes)
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    return Probe(None, None, [f"network: not compared with the original, which takes no image tried ({reason})"])


def _shapes(original: nn.Module, shape: Sequence[int] | None) -> list[tuple[int, ...]]:
    if shape is not None:
        return [tuple(shape)]
    convs = (module for module in original.modules() if isinstance(module, nn.Conv2d))
    first = next(convs, None)
    channels = 3 if first is None else first.in_channels
    return [(channels, size, size) for size in _SIZES]


@contextlib.contextmanager
def fixed_draws(like: Tensor) -> Iterator[None]:
    """The same random numbers in every such block, and none taken from the caller's stream."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(0)
        yield
