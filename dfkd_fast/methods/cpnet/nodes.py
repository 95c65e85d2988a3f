"""Nodes: the teacher's BatchNorm inputs at which the generator inverts it, found from its layers or named by the user.

CPNet (Chen et al., ICCV 2025). The authors' code has a table of names for four networks; here they follow from the
network, and for ResNets and VGGs are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.models.teacher import FrozenNet

_INPUT = ":input"
_SHORTCUTS = ("shortcut", "downsample")


class TeacherNode(NamedTuple):
    """A BatchNorm layer of the teacher, whose input a stage of the generator is to make."""

    name: str
    """of the layer, as a module path"""
    place: int
    """among the network's BatchNorm layers, in the order of `FrozenNet.targets`"""
    channels: int
    size: ImageSize
    """of its input"""

    @property
    def map_name(self) -> str:
        """Its input, as `FrozenNet` calls it among its maps."""
        return self.name + _INPUT


def find_nodes(teacher: FrozenNet, names: Sequence[str] = ()) -> tuple[TeacherNode, ...]:
    """The layers of these names, or without any those that `default_names` chooses; the deepest first.

    Raises UserError for a teacher without BatchNorm layers, and for a name that is none of theirs.
    """
    maps = teacher.norm_inputs
    if not maps:
        raise UserError(
            f"--teacher {teacher.info.name}: has no BatchNorm layers, whose inputs the generator is to make; "
            "choose a teacher with BatchNorm"
        )
    blank = teacher.info.blank(next(teacher.net.parameters()))
    with torch.no_grad():
        seen = teacher(blank, maps=maps, moments=False).maps
    layers = {}
    for place, name in enumerate(maps):
        layer, (_, channels, *size) = name.removesuffix(_INPUT), seen[name].shape
        layers[layer] = TeacherNode(layer, place, channels, ImageSize(*size))
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise UserError(
            f"--method.nodes {unknown[0]}: no BatchNorm layer of the teacher; choose from {', '.join(layers)}"
        )
    sizes = {name: node.size for name, node in layers.items()}
    chosen = {layers[name] for name in names or default_names(sizes)}
    return tuple(sorted(chosen, key=lambda node: node.place, reverse=True))


def default_names(sizes: Mapping[str, ImageSize]) -> list[str]:
    """The nodes among a network's BatchNorm layers, which are given in order with the size of their input.

    A network of several stages that ends in a BatchNorm behind them (a wide ResNet: pre-activation blocks): this one,
    and of each stage the last block's first, `bn1`. Any other: the last layer of each resolution, shortcuts apart,
    which in a ResNet of basic blocks is the last `bn2` of each stage.
    """
    main = [name for name in sizes if not any(word in name for word in _SHORTCUTS)] or list(sizes)
    firsts = {name.partition(".")[0]: name for name in main if name.endswith(".bn1")}
    if len(firsts) > 1 and "." not in main[-1]:
        return [*firsts.values(), main[-1]]
    return list({sizes[name]: name for name in main}.values())


def described(nodes: Sequence[TeacherNode]) -> str:
    """Names and sizes, in one line."""
    return ", ".join(f"{node.name} ({node.channels} x {node.size.height} x {node.size.width})" for node in nodes)
