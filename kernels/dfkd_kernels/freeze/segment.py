"""Frozen layers that follow one another, as one autograd function: what autograd and Python cost is paid once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import pick
from ..bn_act_moments.reference import Moments
from ..registration import once_differentiable
from .convolution import FrozenConv2d
from .derived import has_hooks
from .steps import Held, MisfitError, Step


class Segment:
    """Steps in order; a call runs them.

    Values are numbered: first what the segment reads from outside, then what each step gives.

    Args:
        steps: at least one.
        inputs: how many values it reads from outside.
        outputs: numbers of the values that are read outside.
    """

    __name__ = "run_segment"
    """by which torch.fx calls it"""

    def __init__(self, steps: Sequence[Step], inputs: int, outputs: Sequence[int]) -> None:
        self.steps, self.inputs, self.outputs = tuple(steps), inputs, tuple(outputs)
        self.layers = [layer for step in steps for layer in step.layers]
        self.first = next((layer for layer in self.layers if isinstance(layer, FrozenConv2d)), None)
        self.watched = [layer for step in steps if step.moments for layer in step.layers]
        kept = {value for number, step in enumerate(steps, inputs) for value in step.keeps(number)}
        self.kept_outside = tuple(sorted(value for value in kept if value < inputs or value in outputs))
        self.kept_inside = tuple(sorted(kept.difference(self.kept_outside)))
        last = {value: place for place, step in enumerate(steps) for value in step.sources}
        lasting = kept.union(outputs)
        self.drops = [
            tuple(value for value, read in last.items() if read == place and value not in lasting)
            for place in range(len(steps))
        ]
        """what nobody reads after each step"""

    def __call__(self, *inputs: Tensor) -> tuple[Any, ...]:
        """The outputs' values, then the `Moments` of each BatchNorm that hands them out.

        Args:
            inputs: (B, C, H, W) each.
        """
        ready = self._ready(inputs)
        if ready is None:
            return self._by_layers(inputs)
        try:
            found = _RunSegment.apply(self, *ready)
        except MisfitError:
            return self._by_layers(inputs)
        count = len(self.outputs)
        return *found[:count], *(
            Moments(found[place], found[place + 1], layer.vectors()[0], found[place + 2])  # type: ignore[operator]
            for place, layer in zip(range(count, len(found), 3), self.watched, strict=True)
        )

    def _ready(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The inputs in the compute dtype where the steps can be run as one, else None."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not any(x.requires_grad for x in inputs):
            return None
        dtype = inputs[0].dtype if self.first is None else self.first.weight.dtype
        device = inputs[0].device.type
        if pick("bn_act_moments", device, dtype) == "reference" or any(map(has_hooks, self.layers)):
            return None
        if torch.is_autocast_enabled(device):
            if torch.get_autocast_dtype(device) != dtype:
                return None
            inputs = tuple(x.to(dtype) for x in inputs)
        return inputs if all(x.dtype == dtype for x in inputs) else None

    def _by_layers(self, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        values: list[Any] = list(inputs)
        moments: list[Moments] = []
        for step, drops in zip(self.steps, self.drops, strict=True):
            y, found = step.plain(*(values[source] for source in step.sources))
            values.append(y)
            moments += [] if found is None else [found]
            for value in drops:
                values[value] = None
        return *(values[number] for number in self.outputs), *moments


class _RunSegment(torch.autograd.Function):
    """(inputs) -> (outputs, then sum, sum_sq and count of each BatchNorm that hands out moments)."""

    @staticmethod
    def forward(ctx: Any, segment: Segment, *inputs: Tensor) -> tuple[Tensor, ...]:
        values: list[Any] = list(inputs)
        constants: list[Tensor] = []
        moments: list[Tensor] = []
        ctx.segment, ctx.made = segment, []
        ctx.backend = pick("bn_act_moments", inputs[0].device.type, inputs[0].dtype)
        for step, drops in zip(segment.steps, segment.drops, strict=True):
            made = step.forward([values[source] for source in step.sources], ctx.backend)
            values.append(made.y)
            moments += made.moments
            constants += made.constants
            ctx.made.append((len(made.constants), made.notes))
            for value in drops:
                values[value] = None
        ctx.save_for_backward(*(values[number] for number in segment.kept_outside), *constants)
        ctx.inside = {number: values[number] for number in segment.kept_inside}
        ctx.mark_non_differentiable(*moments[2::3])
        ctx.set_materialize_grads(False)
        return *(values[number] for number in segment.outputs), *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        segment: Segment = ctx.segment
        if ctx.inside is None:
            raise RuntimeError("backward: the second time through a frozen network, the first lacked retain_graph=True")
        outside = len(segment.kept_outside)
        saved = list(ctx.saved_tensors)
        values = {**ctx.inside, **dict(zip(segment.kept_outside, saved[:outside], strict=True))}
        if not torch._C._autograd._get_current_graph_task_keep_graph():  # let go of each value once it is used
            ctx.inside = None
        count = len(segment.outputs)
        found: dict[int, Tensor] = {}
        _add(found, segment.outputs, grads[:count])
        sums = list(grads[count:])
        for number, step in reversed(list(enumerate(segment.steps, segment.inputs))):
            size, notes = ctx.made[number - segment.inputs]
            constants = tuple(saved[len(saved) - size :])
            del saved[len(saved) - size :]
            dsums = tuple(sums[-3:-1]) if step.moments else ()
            del sums[len(sums) - 3 * step.moments :]
            held = Held([values[each] for each in step.keeps(number)], constants, notes)
            _add(found, step.sources, step.backward(found.pop(number, None), dsums, held, ctx.backend))
            values.pop(number, None)
        return None, *(found.get(number) for number in range(segment.inputs))


def _add(found: dict[int, Tensor], numbers: Sequence[int], grads: Sequence[Tensor | None]) -> None:
    for number, grad in zip(numbers, grads, strict=True):
        if grad is not None:
            found[number] = found[number] + grad if number in found else grad
