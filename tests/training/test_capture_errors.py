"""A step that cannot be captured: its own error is shown, not that of the capture that it broke."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from dfkd_fast.errors import UserError
from dfkd_fast.training.capture import CudaGraphs, real_error_shown

ENDED = "CUDA error: operation failed due to a previous error during capture\nSearch for `cudaErrorStreamCapture'"
FORBIDDEN = "CUDA error: operation not permitted when stream is capturing\nCompile with `TORCH_USE_CUDA_DSA`"


@contextmanager
def broken_capture(*_: Any, **__: Any) -> Iterator[None]:
    """What torch.cuda.graph does with a step that failed: its end fails as well."""
    try:
        yield
    finally:
        raise torch.AcceleratorError(ENDED) if hasattr(torch, "AcceleratorError") else RuntimeError(ENDED)


def forbidden() -> None:
    raise RuntimeError(FORBIDDEN)


def forbidden_after_a_lookup() -> None:
    """The way in which caches are filled: the miss is no error."""
    try:
        _ = {}["kernel"]
    except KeyError:
        forbidden()


def forbidden_then_cleaned_up() -> None:
    try:
        forbidden()
    finally:
        raise RuntimeError(ENDED)


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def a_bug() -> None:
    raise AssertionError("a step got another shape")


def a_mistake() -> None:
    raise UserError("--pool.stream dali: cannot")


@pytest.mark.parametrize("step", [forbidden, forbidden_after_a_lookup, forbidden_then_cleaned_up])
def test_the_first_error_is_shown_in_one_line(step: Callable[[], None]) -> None:
    words = r"operation not permitted when stream is capturing"
    line = rf"^--cuda-graphs: the step cannot be captured \(CUDA error: {words}\); choose --no-cuda-graphs$"
    with pytest.raises(UserError, match=line) as caught, real_error_shown(broken_capture()):
        step()
    assert str(caught.value.__cause__) == FORBIDDEN


def test_a_capture_that_only_fails_to_end() -> None:
    with pytest.raises(UserError, match="previous error during capture"), real_error_shown(broken_capture()):
        pass


@pytest.mark.parametrize(
    ("step", "kind"), [(no_memory, torch.OutOfMemoryError), (a_bug, AssertionError), (a_mistake, UserError)]
)
def test_other_errors_are_raised_as_they_are(step: Callable[[], None], kind: type[Exception]) -> None:
    with pytest.raises(kind) as expected:
        step()
    with pytest.raises(kind) as caught, real_error_shown(broken_capture()):
        step()
    assert str(caught.value) == str(expected.value)
    assert caught.traceback[-1].name == step.__name__


def test_recording_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("graph", "Stream", "CUDAGraph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, broken_capture)
    graphs = CudaGraphs(torch.device("cpu"))
    with pytest.raises(UserError, match="not permitted when stream is capturing"):
        graphs.record(forbidden)  # type: ignore[arg-type]
