"""Repeated steps: run as Python, or captured once and replayed.

A replay runs the same kernels on the same addresses and none of the Python around them. So whatever changes between two
steps must be a tensor that is written in place: inputs, learning rates, labels, statistics. What Python decides is a
step's variant; each variant is captured by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from dfkd_fast.device.compilation import CLOCK
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import LossTerms

Step = Callable[..., LossTerms]

WARM_UP_STEPS = 3
"""steps of each variant before it is captured: libraries choose their kernels, states and gradients get their memory"""


class StepRunner(Protocol):
    """Runs one step of a variant on inputs (trees of tensors of the same shapes each time)."""

    def __call__(self, variant: Hashable, *inputs: Any) -> LossTerms:
        """The step's loss terms; a later step may overwrite them."""


class Recorder(Protocol):
    """What makes a step into something that can be replayed."""

    def warm_up(self, step: Callable[[], LossTerms]) -> LossTerms:
        """Run a step as it is, where recorded ones will run."""

    def record(self, step: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
        """Run a step once; returns what runs it again, and its terms, which each replay overwrites."""


def make_runner(step: Step, runtime: Runtime) -> StepRunner:
    """Captured steps where the runtime asks for them, else plain calls."""
    return CapturedSteps(step, CudaGraphs(runtime.device)) if runtime.graphs else EagerSteps(step)


class EagerSteps:
    """Calls the step."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, variant: Hashable, *inputs: Any) -> LossTerms:
        return self.step(*inputs)


class CapturedSteps:
    """The first steps of a variant run as they are, the next is recorded, all others are replays."""

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self.step, self.recorder = step, recorder
        self._variants: dict[Hashable, _Variant] = {}

    def __call__(self, variant: Hashable, *inputs: Any) -> LossTerms:
        if variant not in self._variants:
            self._variants[variant] = _Variant(self.step, self.recorder, inputs)
        return self._variants[variant](inputs)


class _Variant:
    """One variant: its inputs at addresses of their own, and what replays it once it is recorded."""

    def __init__(self, step: Step, recorder: Recorder, inputs: Any) -> None:
        self.inputs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
        self._step = functools.partial(step, *self.inputs)
        self._recorder, self._warm_ups = recorder, 0
        self._replay: Callable[[], None] | None = None
        self._terms: LossTerms = {}

    def __call__(self, inputs: Any) -> LossTerms:
        for own, new in zip(tree_leaves(self.inputs), tree_leaves(inputs), strict=True):
            if isinstance(own, Tensor):
                assert own.shape == new.shape, f"a captured step got {tuple(new.shape)} where it had {tuple(own.shape)}"
                own.copy_(new, non_blocking=True)
        if self._replay is not None:
            self._replay()
        elif self._warm_ups < WARM_UP_STEPS:
            self._warm_ups += 1
            return self._recorder.warm_up(self._step)
        else:
            self._replay, self._terms = self._recorder.record(self._step)
        return self._terms


class CudaGraphs:
    """CUDA graphs, all on one memory pool: the two phases never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, step: Callable[[], LossTerms]) -> LossTerms:
        # on the stream that is captured: autograd remembers on which one a parameter was first used
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            terms = step()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return terms

    def record(self, step: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
        graph = torch.cuda.CUDAGraph()
        pool = _memory_pool(self.device)
        # other threads (the journal's, a stream's) may allocate meanwhile: their calls are none of this graph's
        capture = torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local")
        with CLOCK.running(), real_error_shown(capture):
            terms = step()
        graph.replay()  # recording has run nothing
        return graph.replay, terms


@contextmanager
def real_error_shown(capture: AbstractContextManager[Any]) -> Iterator[None]:
    """Run the block in `capture`; raise what the block failed of: UserError where that cannot be captured.

    A step that fails leaves a capture that cannot be ended either, and the error of its end would hide the step's.
    Memory that ran out, a user's mistake and a bug of ours have nothing to do with capturing: they are raised as they
    are.
    """
    failed: Exception | None = None
    try:
        with capture:
            try:
                yield
            except Exception as error:
                failed = error
                raise
    except Exception as last:
        real = _first_of(failed or last)
        if isinstance(real, torch.OutOfMemoryError) or not isinstance(real, RuntimeError):
            raise real from None
        reason = next(iter(str(real).strip().splitlines()), type(real).__name__)
        raise UserError(f"--cuda-graphs: the step cannot be captured ({reason}); choose --no-cuda-graphs") from real


def _first_of(error: Exception) -> Exception:
    """The error of the device that a chain of them began with: those before it that are not the device's were handled
    on the way.
    """
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    device_errors = [link for link in chain if isinstance(link, RuntimeError)]
    return device_errors[-1] if isinstance(error, RuntimeError) else error


@functools.cache
def _memory_pool(device: torch.device) -> Any:
    return torch.cuda.graph_pool_handle()
