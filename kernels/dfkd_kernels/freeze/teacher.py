"""`FrozenTeacher`: a network as a constant that passes gradients to its input and hands out its BN moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..bn_act_moments.reference import Moments
from ..checks import check_float, check_same_device
from .norms import StatBatchNorm2d, WatchedBatchNorm
from .rewrite import INPUT, Plan
from .swap import SwappedNetwork


class TeacherOutput(NamedTuple):
    """What a frozen network gives."""

    logits: Tensor
    """(B, K), in the compute dtype"""
    features: Tensor | None
    """the last feature map (B, D, h, w), before global pooling; None if it was not found (`report` says so)"""
    moments: list[Moments]
    """of each BatchNorm's input, in the order of `FrozenTeacher.targets`; empty with `moments=False`"""


class MappedTeacherOutput(NamedTuple):
    """The same, with the stage maps that were asked for."""

    logits: Tensor
    features: Tensor | None
    moments: list[Moments]
    maps: dict[str, Tensor]
    """by the names that were asked for"""


class FrozenTeacher(nn.Module):
    """A frozen network; `freeze_teacher` makes it.

    Attributes:
        report: one line for each place where freezing or fusing did not apply, with the reason.
        class_weights: the classifier's weight (K, D), if it is one Linear on the pooled features; else None.
        classifier: that layer's path in the network; else None.
    """

    def __init__(
        self,
        body: nn.Module,
        plan: Plan | None,
        report: list[str],
        dtype: torch.dtype | None,
        nhwc: bool,
        hands_out_moments: bool = True,
    ) -> None:
        super().__init__()
        self.body = body
        self.report = report
        self._plan = plan
        self._dtype, self._nhwc = dtype, nhwc
        self._hands_out_moments = hands_out_moments
        self._watched: list[nn.Module] | None = None
        self._functions: dict[tuple[tuple[str, ...], bool], Callable[..., Any]] = {}
        for moments in (True, False):
            self.prepare(moments=moments)

    @property
    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """(running_mean, running_var) of each BatchNorm that hands out moments, in their order."""
        return [(norm.running_mean, norm.running_var) for norm in self._norms()]

    @property
    def norm_inputs(self) -> tuple[str, ...]:
        """Names for `maps` of what each BatchNorm that hands out moments reads."""
        if not self._hands_out_moments:
            return ()
        if isinstance(self.body, SwappedNetwork):
            return tuple(norm.name + INPUT for norm in self.body.norms())
        assert self._plan is not None
        return tuple(path + INPUT for path in self._plan.norms)

    @property
    def classifier(self) -> str | None:
        """Its path, or None."""
        return None if self._plan is None else self._plan.classifier

    @property
    def class_weights(self) -> Tensor | None:
        """(K, D), or None."""
        if self.classifier is None:
            return None
        weight: Tensor = self.body.get_submodule(self.classifier).weight  # type: ignore[assignment]
        return weight

    def prepare(self, *, maps: Sequence[str] = (), moments: bool = True) -> None:
        """Generate the code for these outputs; a call does it by itself, except inside torch.compile.

        Raises:
            ValueError: a name in `maps` that is no module of the network, or whose output fusion has removed.
        """
        key = (tuple(maps), moments)
        if key in self._functions:
            return
        if isinstance(self.body, SwappedNetwork):
            self.body.watch(maps)
            self._functions[key] = type(self.body).forward
        else:
            assert self._plan is not None
            self._plan.check(maps)
            self._functions[key] = self._plan.function(self.body, maps, moments)

    def forward(
        self, x: Tensor, *, maps: Sequence[str] = (), moments: bool = True
    ) -> TeacherOutput | MappedTeacherOutput:
        """Run the network on normalised images.

        Args:
            x: (B, C, H, W), floating, not empty; cast to the compute dtype and to channels-last if the network was
                frozen so.
            maps: module paths of the original network whose outputs to return as well; `path:input` returns what the
                module reads.
            moments: False skips the batch statistics.

        Returns:
            (logits, features, moments), and with `maps` a fourth entry, a dict by name.

        Raises:
            ValueError: x of a wrong shape, number of channels, dtype or device; a name in `maps` as in `prepare`.
        """
        self._check(x)
        moments = moments and self._hands_out_moments
        key = (tuple(maps), moments)
        if key not in self._functions:
            if torch.compiler.is_compiling():
                raise ValueError(f"maps {tuple(maps)}: call prepare(maps=...) before torch.compile")
            self.prepare(maps=maps, moments=moments)
        if self._dtype is not None:
            x = x.to(self._dtype)
        if self._nhwc:
            x = x.contiguous(memory_format=torch.channels_last)
        extra = key if isinstance(self.body, SwappedNetwork) else ()
        out = self._functions[key](self.body, x, *extra)
        return MappedTeacherOutput(*out) if maps else TeacherOutput(*out)

    def _check(self, x: Tensor) -> None:
        check_float("x", x)
        if x.dim() != 4 or x.numel() == 0:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected a non-empty (B, C, H, W)")
        check_same_device("x", x, "the network", next(self.body.parameters(), x))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: generated code is left out, and generated anew on the other side."""
        return {**self.__dict__, "_functions": list(self._functions)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_functions": {}})
        for maps, moments in state["_functions"]:
            self.prepare(maps=maps, moments=moments)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode, whatever an enclosing module is set to."""
        super().train(False)
        return self

    def _norms(self) -> list[StatBatchNorm2d | WatchedBatchNorm]:
        if not self._hands_out_moments:
            return []
        if isinstance(self.body, SwappedNetwork):
            return [recording.norm for recording in self.body.norms()]
        if self._watched is None:
            assert self._plan is not None
            self._watched = [self.body.get_submodule(path) for path in self._plan.norms]
        return self._watched  # type: ignore[return-value]
