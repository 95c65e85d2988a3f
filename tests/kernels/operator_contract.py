"""The contract of every operator of dfkd_kernels, whatever it computes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd_kernels.backend import use, why_not

BACKENDS = ("reference", "triton", "native")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative rounding error of one stored result.
EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@contextmanager
def running_on(backend: str, *ops: str) -> Iterator[str]:
    """Run `ops` on a backend, or skip with the reason why it cannot run here."""
    for op in ops:
        reason = why_not(op, backend, DEVICE, torch.float32)
        if reason:
            pytest.skip(f"{op}: {reason}")
    for op in ops:
        use(backend, op=op)
    torch.compiler.reset()  # compiled code keeps the backend that it was traced with
    try:
        yield backend
    finally:
        for op in ops:
            use("auto", op=op)


def check_repeatable(function: Callable[..., Any], *inputs: Any) -> None:
    """Two calls give the same bits, and neither the values nor the versions of the inputs change."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    copies, versions = [tensor.detach().clone() for tensor in tensors], [tensor._version for tensor in tensors]
    first, second = function(*inputs), function(*inputs)
    for a, b in zip(as_tuple(first), as_tuple(second), strict=True):
        assert torch.equal(a, b)
    for tensor, copy, version in zip(tensors, copies, versions, strict=True):
        assert torch.equal(tensor.detach(), copy)
        assert tensor._version == version


def check_compiles(function: Callable[..., Any], *inputs: Any, backend: str = "aot_eager") -> None:
    """torch.compile(fullgraph=True) accepts the function and gives the same values and gradients."""
    differentiable = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend=backend)):
        outputs = as_tuple(run(*inputs))
        gradients: tuple[Tensor, ...] = ()
        if differentiable:
            gradients = torch.autograd.grad(sum(out.sum() for out in outputs), differentiable)
        results.append((*(out.detach() for out in outputs), *gradients))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def check_capturable(function: Callable[..., Any], *inputs: Any) -> None:
    """A CUDA graph can capture the function, which is so if it never waits for the GPU; replay gives the same bits."""
    expected = [out.clone() for out in as_tuple(function(*inputs))]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = as_tuple(function(*inputs))
    graph.replay()
    for actual, value in zip(captured, expected, strict=True):
        assert torch.equal(actual, value)


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
needs_cpu = pytest.mark.skipif(
    DEVICE != "cpu", reason="values are looked at on the CPU only: elsewhere that would wait"
)
