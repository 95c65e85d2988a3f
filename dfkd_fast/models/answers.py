"""Check a network's output before anything is spent: find the logits among other outputs, refuse unsuitable sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.messages.notes import note

Pick = str | int | None
"""where a network's answer has the logits: under a key or an attribute, at an index, or it is them"""

_LARGEST_TRIED = 320  # pixels, when the least size is looked for
_REASON = 160  # characters of a network's own complaint
_NO_MEMORY = (MemoryError, torch.OutOfMemoryError)


def settle_answer(model: nn.Module, shape: Sequence[int], num_classes: int | None, *, name: str) -> int:
    """See what a network answers to images of `shape` (C, H, W), and make it answer with its logits alone.

    A dict, tuple, dataclass or ModelOutput has them as `logits`, or as its only (or, which is printed, its first)
    output (B, K); such a network's `forward` is replaced by one that hands them out, so that its state_dict stays its
    own. Both modes are tried: auxiliary classifiers answer in training alone. Weights, buffers, mode and random state
    are left as they are.

    Returns the number of classes. Raises UserError, which begins with `name`, where the images are too small, the
    network fails on them, or there are no logits for `num_classes` classes (None: for any number).
    """
    picks: dict[bool, Pick] = {}
    width = 0
    for training in (False, True):
        with _mode(model, training=training), torch.no_grad():
            answer = _attempt(model, shape, name)
        picks[training], width = _find_logits(answer, num_classes or (width or None), name)
    if any(pick is not None for pick in picks.values()):
        _answer_by(model, picks)
    return width


def check_training(model: nn.Module, shape: Sequence[int], *, name: str) -> None:
    """Raise UserError, which begins with `name`, where a network cannot be trained on images of `shape` (C, H, W):
    one step forward and backward. Weights, buffers, mode and random state are left as they are.
    """
    kept = [parameter.grad for parameter in model.parameters()]
    try:
        with _mode(model, training=True):
            logits = _attempt(model, shape, name)
            logits.float().square().sum().backward()
    except _NO_MEMORY:
        raise
    except RuntimeError as error:
        raise UserError(f"{name}: has no gradients ({_reason(error)}); choose another network") from error
    finally:
        for parameter, gradient in zip(model.parameters(), kept, strict=True):
            parameter.grad = gradient


def _attempt(model: nn.Module, shape: Sequence[int], name: str) -> Any:
    """The network's answer to two black images. Raises UserError, with the least size that it takes if there is one."""
    try:
        return model(_blank(model, shape))
    except _NO_MEMORY:
        raise
    except Exception as error:  # the network's own code: anything may come out of it
        least = _least_size(model, shape)
        sizes = "x".join(map(str, shape[1:]))
        hint = "choose another --image-size or network"
        if least is not None:
            hint = f"it takes {least} pixels and more: choose --image-size {least.flag}, or another network"
        raise UserError(
            f"{name}: cannot take images of {sizes} pixels and {shape[0]} channels ({_reason(error)}); {hint}"
        ) from error


def _least_size(model: nn.Module, shape: Sequence[int]) -> ImageSize | None:
    """The least size, above that of `shape`, of images with its ratio of sides (about, where the longer one would be no
    whole number) that the network takes; None where none is found.
    """
    given = ImageSize(*shape[1:])

    def sized(short: int) -> ImageSize:
        return ImageSize(*(-(-side * short // given.short) for side in given))

    def takes(short: int) -> bool:
        try:
            with torch.no_grad():
                model(_blank(model, (shape[0], *sized(short))))
        except _NO_MEMORY:
            raise
        except Exception:
            return False
        return True

    low = given.short
    high = next((side for side in _doubled(low) if takes(side)), None)
    if high is None:
        return None
    low = max(low, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if takes(middle) else (middle, high)
    return sized(high)


def _doubled(side: int) -> Iterator[int]:
    while side < _LARGEST_TRIED:
        side = min(2 * side, _LARGEST_TRIED)
        yield side


def _blank(model: nn.Module, shape: Sequence[int]) -> Tensor:
    like = next((value for value in model.parameters() if value.is_floating_point()), torch.zeros(()))
    return like.new_zeros(2, *shape)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """A mode for a while; afterwards each part's own mode, the buffers and the random state are as before."""
    before = [(part, part.training) for part in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        model.train(training)
        try:
            yield
        finally:
            for part, was in before:
                part.training = was
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _find_logits(answer: Any, num_classes: int | None, name: str) -> tuple[Pick, int]:
    """Where the logits are, and for how many classes."""
    wanted = "logits (B, K)" if num_classes is None else f"logits for {num_classes} classes"
    if isinstance(answer, Tensor):
        if _is_logits(answer, num_classes):
            return None, answer.shape[1]
        raise UserError(f"{name}: answers a tensor of shape {_shape(answer)} to 2 images, not {wanted}")
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(named, Tensor):
        if _is_logits(named, num_classes):
            return "logits", named.shape[1]
        raise UserError(f"{name}: its logits are of shape {_shape(named)} for 2 images, not {wanted}")
    parts: list[tuple[Pick, Any]] = []
    if isinstance(answer, Mapping):
        parts = [(key, value) for key, value in answer.items() if isinstance(key, str)]
    elif isinstance(answer, tuple | list):
        parts = list(enumerate(answer))
    found = [(pick, part) for pick, part in parts if isinstance(part, Tensor) and _is_logits(part, num_classes)]
    kind = type(answer).__name__
    if not found or (len(found) > 1 and isinstance(answer, Mapping)):
        many = f"{len(found)} outputs that could be" if found else "none that is"
        raise UserError(f"{name}: answers a {kind} with {many} {wanted}, and none is called logits")
    if len({part.shape[1] for _, part in found}) > 1:
        widths = " and ".join(str(part.shape[1]) for _, part in found)
        raise UserError(f"{name}: answers a {kind} with outputs of {widths} numbers; say by --num-classes which it is")
    if len(found) > 1:
        note(f"{name}: answers a {kind} with {len(found)} outputs for the classes; the first is taken for its logits")
    pick, logits = found[0]
    return pick, logits.shape[1]


def _is_logits(value: Tensor, num_classes: int | None) -> bool:
    return value.dim() == 2 and value.is_floating_point() and num_classes in (None, value.shape[1])


def _answer_by(model: nn.Module, picks: Mapping[bool, Pick]) -> None:
    """Give a network a forward that hands out its logits alone.

    A class of its own, with the old one's name, rather than a module around it: its parts keep their names.
    """
    kind = type(model)
    own: Callable[..., Any] = kind.forward

    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        answer, pick = own(self, *arguments, **named), picks.get(self.training)
        if pick is None:
            return answer
        if isinstance(pick, str) and not isinstance(answer, Mapping):
            return getattr(answer, pick)
        return answer[pick]

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    model.__class__ = type(kind.__name__, (kind,), {**names, "forward": forward})


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0][:_REASON] if lines else type(error).__name__}"


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
