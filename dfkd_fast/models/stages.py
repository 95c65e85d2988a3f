"""Where the stages of a network end: between two of them maps shrink and channels grow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

Names = tuple[str, ...]


def stage_ends(model: nn.Module) -> tuple[Names, ...]:
    """Names, for `maps`, of the map at the end of each stage, from the first on; none where no stages are found.

    Stages are the network's parts that hold convolutions (`layer1`, `block2`); in a network without such parts a stage
    ends where a convolution halves the map. Each stage has its names in order of preference: where a part ends with a
    BatchNorm and an activation follows, a fused network only has the map that the next part reads.
    """
    parts = [name for name, part in model.named_children() if not isinstance(part, nn.Conv2d) and _convolutions(part)]
    if len(parts) > 1:
        inner = tuple((name, f"{after}:input") for name, after in pairwise(parts))
        return (*inner, (parts[-1],))
    convolutions = _convolutions(model)
    return tuple((f"{name}:input",) for name, layer in convolutions[1:] if max(layer.stride) > 1)


def pair_stages(of_teacher: Sequence[str], student: nn.Module) -> tuple[Names, Names]:
    """The names of a teacher's stages, from the first on, and those of a student's, as many as both have."""
    pairs = list(zip(of_teacher, (names[0] for names in stage_ends(student)), strict=False))
    return tuple(name for name, _ in pairs), tuple(name for _, name in pairs)


def _convolutions(module: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
