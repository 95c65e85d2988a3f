"""Code that the examples share: their options, the check in float64, and the timing of both forms."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from network import NUM_CLASSES, make_network
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""images (B, 3, H, W) and labels (B,) -> a scalar"""

TOLERANCE = 1e-10


class Problem(NamedTuple):
    """A network to look into, and where to start."""

    network: nn.Module
    images: Tensor
    """(B, 3, H, W), noise"""
    labels: Tensor
    """(B,) int64"""

    def to(self, device: str, dtype: torch.dtype) -> Problem:
        """A copy there, in this dtype. Hooks stay on the network that they were set on."""
        network = copy.deepcopy(self.network).to(device, dtype)
        return Problem(network, self.images.to(device, dtype), self.labels.to(device))


def parse(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options that all examples take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer (default 16; 64: ResNet-18)")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images, a multiple of 8 (default 32)")
    parser.add_argument("--batch-size", type=int, default=16, help="number of images (default 16)")
    parser.add_argument("--steps", type=int, default=12, help="optimisation steps of each form (default 12)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the race")
    parser.add_argument("--device", default="cpu", help="cpu (one thread) or cuda")
    return parser.parse_args(argv)


def make_problem(options: argparse.Namespace) -> Problem:
    """A float32 problem on the CPU, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network(options.width, options.image_size)
        images = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    return Problem(network, images, torch.arange(options.batch_size) % NUM_CLASSES)


def check_equal(before: Loss, after: Loss, images: Tensor, labels: Tensor) -> float:
    """The largest relative difference of the two losses and of their gradients with respect to the images, in float64.

    Raises:
        AssertionError: it is above 1e-10.
    """
    results = []
    for loss in (before, after):
        x = images.detach().clone().requires_grad_()
        value = loss(x, labels)
        results.append((value.detach(), *torch.autograd.grad(value, x)))
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))
    assert images.dtype == torch.float64
    assert difference <= TOLERANCE, f"loss or image gradient differ by {difference:.1e} of the largest value"
    return difference


def race(before: Iterator[Tensor], after: Iterator[Tensor], steps: int) -> str:
    """Run both step by step in turns, on one thread; says how the loss went and what a step took, by medians.

    Args:
        before, after: each `next` does one optimisation step and gives its loss.
        steps: of each, besides two to warm up.
    """
    runs = {"hooks": before, "moments": after}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses = [float(next(run)) for run in runs.values() for _ in range(2)]
        for step in range(steps):
            for name in sorted(runs, reverse=step % 2 == 1):
                start = time.perf_counter()
                losses.append(float(next(runs[name])))  # reading the value waits for the device
                seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    hooks, moments = (1e3 * statistics.median(seconds[name]) for name in runs)
    return (
        f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {steps + 2} steps\n"
        f"a step takes {hooks:.1f} ms with hooks, {moments:.1f} ms with moments: {hooks / moments:.2f} times as fast"
    )


def compare(
    options: argparse.Namespace,
    before: Callable[[nn.Module], Any],
    after: Callable[[nn.Module], Any],
    optimise: Callable[[Any, Tensor, Tensor], Iterator[Tensor]],
    check: Callable[[Any, Any, Tensor, Tensor], float] = check_equal,
) -> None:
    """Assert that both forms compute the same, then print how fast each is.

    Args:
        options: of `parse`.
        before, after: network -> loss, with hooks and with moments.
        optimise: (loss, images, labels) -> one loss per optimisation step.
        check: (before, after, images, labels), float64 -> the largest relative difference.
    """
    problem = make_problem(options)
    exact, twin = (problem.to("cpu", torch.float64) for _ in range(2))
    difference = check(before(twin.network), after(exact.network), exact.images, exact.labels)
    print(f"same loss and image gradient in float64: they differ by {difference:.0e}")
    fast, twin = (problem.to(options.device, getattr(torch, options.dtype)) for _ in range(2))
    losses = before(twin.network), after(fast.network)
    first, second = (optimise(loss, fast.images, fast.labels) for loss in losses)
    print(race(first, second, options.steps))
