"""Frozen networks: the teacher, and the student as synthesis sees it; and where the stages of any network end."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, TypeVarTuple

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.frozen_forms import check_foldable, lower_dtype
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.int8_answers import Int8Answers
from dfkd_fast.models.vit import FrozenVit, TokenWindow, check_size, is_vit
from dfkd_kernels import FrozenTeacher, Moments, freeze_teacher

_NO_MAPS: Mapping[str, Tensor] = MappingProxyType({})


class NetOutput(NamedTuple):
    """What a network hands out: a value for everything a method may ask for, no hooks."""

    logits: Tensor
    """(B, K), in the network's compute dtype"""
    features: Tensor | None = None
    """last feature map (B, D, h, w), before global pooling"""
    maps: Mapping[str, Tensor] = _NO_MAPS
    """the stage maps that were asked for, by name"""
    moments: Sequence[Moments] = ()
    """batch moments of every BatchNorm's input, in the order of `FrozenNet.targets`"""
    embedding: Tensor | None = None
    """(B, D): what the classifier reads, where that is not the features' mean (a vision transformer's class token)"""

    def pooled(self) -> Tensor:
        """(B, D): what a classifier reads, the features' mean over pixels unless there is another `embedding`."""
        if self.embedding is not None:
            return self.embedding
        assert self.features is not None, "the network's features were not found"
        return self.features.mean((2, 3))


class FrozenNet:
    """A frozen, eval network: weights once in the compute dtype, BN handing out its batch moments as values.

    Gradients reach its input; none is ever computed for its weights. Not an nn.Module, so that a method that holds it
    neither saves nor trains it.
    """

    def __init__(
        self, model: nn.Module, info: ModelInfo, runtime: Runtime, *, precision: str = "same", folded: bool = False
    ) -> None:
        """`precision` bf16 or fp16 computes it in that where the run itself computes in float32; same: as the run.
        int8: as the run, but for `answer`, once `int8` has been calibrated.

        With `folded`, answers without gradients come from a second copy, whose BatchNorms are folded into its
        convolutions. Raises UserError where there is nothing to fold, or no CPU, where alone it gains.
        """
        self.info, self.global_batch = info, runtime.global_batch
        self._stages = stage_ends(model)
        # torch.compile takes no new leaves: what a graph must start from is this zero
        self._anchor = torch.zeros((), device=runtime.device, requires_grad=True)
        placed = copy.deepcopy(model).to(runtime.device)
        dtype = lower_dtype(precision, runtime)
        self.int8 = Int8Answers(model, info, runtime) if precision == "int8" else None
        self.window = TokenWindow(runtime.device, is_led=is_vit(model))
        """where vision transformers see images that are smaller than theirs; drawn here at each call if this is one"""
        self.net = (
            FrozenVit(placed, self.window, dtype=dtype)
            if is_vit(model)
            else freeze_teacher(placed, dtype=dtype, channels_last=runtime.channels_last, image_shape=info.shape)
        )
        self._answering = self.net
        if folded:
            check_foldable(info.name, runtime, has_norms=bool(getattr(self.net, "targets", ())))
            self._answering = freeze_teacher(
                placed, dtype=dtype, channels_last=runtime.channels_last, image_shape=info.shape, moments=False
            )
        path = getattr(self.net, "classifier", None)  # no other kind of frozen network has one to share
        self._classifier = None if path is None else model.get_submodule(path)

    def __call__(self, view: Tensor, *, maps: Sequence[str] = (), moments: bool = True) -> NetOutput:
        """Views (B, C, H, W), normalised -> NetOutput. `moments=False` skips the statistics (the student phase needs
        none). `maps`: modules whose outputs to hand out, `layer1:input` for what a module reads.
        """
        return self._run(self.net, view, maps, moments)

    def _run(self, net: FrozenVit | FrozenTeacher, view: Tensor, maps: Sequence[str], moments: bool) -> NetOutput:
        if isinstance(net, FrozenVit):
            net.prepare(maps=maps)
            tokens = net(view)
            return NetOutput(tokens.logits, tokens.features, embedding=tokens.embedding)
        if maps:
            logits, features, found, named = net(view, maps=tuple(maps), moments=moments)
            return NetOutput(logits, features, named, self.global_batch.moments(found))
        logits, features, found = net(view, moments=moments)
        return NetOutput(logits, features, _NO_MAPS, self.global_batch.moments(found))

    def answer(self, view: Tensor, *, maps: Sequence[str] = (), gradients: bool = False) -> NetOutput:
        """What a student learns from: logits, features and `maps`; with `gradients` there is a graph from the maps to
        the logits, so that Grad-CAM can ask how much each counts.
        """
        if self.int8 is not None and self.int8.is_calibrated and not gradients:
            assert not maps, "of answers in int8 there are logits alone"
            return NetOutput(self.int8(view))
        if gradients:
            return self(view.detach() + self._anchor, maps=maps, moments=False)
        with torch.no_grad():
            return self._run(self._answering, view, maps, moments=False)

    def prepare(self, maps: Sequence[str]) -> None:
        """Get ready to hand out these maps: a call does so by itself, except in a step that is compiled."""
        for moments in (True, False):
            self.net.prepare(maps=tuple(maps), moments=moments)
        self._answering.prepare(maps=tuple(maps), moments=False)

    def stage_maps(self, count: int) -> tuple[str, ...]:
        """Names for `maps` of the ends of the first stages, `count` of them or as many as there are. Raises UserError
        where the network has none.
        """
        maps = tuple(self._first_held(names) for names in self._stages[:count])
        if count and not maps:
            raise UserError(f"--teacher {self.info.name}: no stages of convolutions found; choose another network")
        return maps

    def _first_held(self, names: Sequence[str]) -> str:
        for name in names:
            try:
                self.net.prepare(maps=(name,))
                self._answering.prepare(maps=(name,))
            except ValueError:  # fusion has taken it away
                continue
            return name
        raise UserError(f"--teacher {self.info.name}: has no map {' or '.join(names)}; choose another network")

    def check_size(self, image_size: ImageSize, flag: str) -> None:
        """Raise UserError, naming `flag`, where the network cannot see images of this size."""
        if isinstance(self.net, FrozenVit):
            check_size(self.net.model, image_size, f"{flag} {image_size.flag}: {self.info.name}")

    def logits(self, view: Tensor) -> Tensor:
        """Logits (B, K) alone, for evaluation."""
        return self._run(self._answering, view, (), moments=False).logits

    @property
    def unmatched(self) -> list[str]:
        """Normalisation layers with running statistics that no method can match, each with the reason."""
        lines = [] if isinstance(self.net, FrozenVit) else self.net.report
        return [line for line in lines if ": no moments, " in line]

    @property
    def targets(self) -> Sequence[tuple[Tensor, Tensor]]:
        """(running_mean, running_var) of each BatchNorm layer, float32."""
        return self.net.targets

    @property
    def class_weights(self) -> Tensor:
        """The classifier's weight (K, D), in the compute dtype: what class activation maps are made of.

        Raises UserError where the classifier is anything but one Linear on the pooled features.
        """
        weights = self.net.class_weights
        if weights is None:
            raise UserError(
                f"--teacher {self.info.name}: its classifier is not one linear layer on pooled features, which class "
                "activation maps need; choose another network, or give that term the weight 0"
            )
        return weights.detach()

    @property
    def classifier(self) -> nn.Linear:
        """A frozen copy of its linear classifier, in the precision that the network was given in.

        Raises UserError as `class_weights` does.
        """
        if not isinstance(self._classifier, nn.Linear):
            raise UserError(
                f"--teacher {self.info.name}: its classifier is not one linear layer on pooled features, which could "
                "be shared; choose another network"
            )
        return copy.deepcopy(self._classifier).to(self._anchor.device).requires_grad_(False)

    @property
    def norm_inputs(self) -> tuple[str, ...]:
        """Names for `maps` of the input of each BatchNorm layer."""
        return self.net.norm_inputs


def frozen_alias(student: nn.Module) -> nn.Module:
    """The student as synthesis sees it: eval, no weight gradients, and the same storage.

    Steps of the student's optimiser and updates of its BN statistics show at once, since every tensor is an alias;
    toggling requires_grad on the student itself would recompile graphs and upset data-parallel wrappers.
    """
    alias = copy.deepcopy(student)
    for own, shared in zip(alias.modules(), student.modules(), strict=True):
        for name, parameter in shared.named_parameters(recurse=False):
            own.register_parameter(name, nn.Parameter(parameter.detach(), requires_grad=False))
        for name, buffer in shared.named_buffers(recurse=False):
            own.register_buffer(name, buffer, persistent=name not in shared._non_persistent_buffers_set)
    return alias.eval()


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


Modules = TypeVarTuple("Modules")


def unregistered(*modules: *Modules) -> tuple[*Modules]:
    """The same modules as a tuple, which nn.Module does not look into when it is set as an attribute.

    The holder then calls them and gradients flow through them, but it neither registers, moves, saves nor trains them:
    `parameters()` and `state_dict()` do not have them. Whoever else holds them does that.
    """
    return modules
