"""Mistakes planted in captured steps, and what the scan says of each."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from card import fake_card
from scan import scan
from torch import Tensor
from watch import Watch
from whole_runs import Case, without_values

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.methods.base import LossTerms
from dfkd_fast.methods.inner import images_of, inners
from dfkd_fast.training import capture

KEPT: list[Tensor] = []
MISTAKES: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "a CPU tensor beside a CUDA one": ("device mix", lambda x: x + torch.ones(3)),
    "a pinned CUDA tensor": ("device mix", lambda x: x.pin_memory()),
    "a list as an index": ("host copy", lambda x: x[[0, 2]]),
    "a tensor of numbers": ("host copy", lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device)),
    "a copy to the host": ("host copy", lambda x: x.cpu()),
    "item": ("host sync", lambda x: x * x.sum().item()),
    "a branch": ("host sync", lambda x: x if (x.sum() > 0) else -x),
    "a mask": ("host sync", lambda x: x[x > 0]),
    "nonzero": ("host sync", lambda x: x.nonzero()),
    "multinomial": ("host sync", lambda x: torch.multinomial(x.abs(), 2)),
    "a CPU factory": ("made on the CPU", lambda x: x * torch.rand(()).to(x.device)),
    "a CPU number": ("CPU number in a kernel", lambda x: x * torch.tensor(2.0)),
    "float64": ("float64", lambda x: x.double()),
    "a tensor that is kept": ("outlives its graph", lambda x: KEPT.append(x * 2)),
    "nothing wrong": ("", lambda x: torch.where(x > 0, x, 0).sum()),
}
"""name -> what the scan must call it, and the step"""


class Toy:
    """One step with a mistake."""

    def __init__(self, mistake: Callable[[Tensor], Any]) -> None:
        self.mistake = mistake

    def step(self, x: Tensor) -> LossTerms:
        self.mistake(x)
        return {"loss": x.sum()}


def found_in(mistake: Callable[[Tensor], Any]) -> list[str]:
    """Kinds of finding; an error if the step cannot even be run on fake tensors."""
    watch = Watch()
    with fake_card(watch), without_values(watch):
        runtime = make_runtime(device="cuda", graphs=True)
        runner = capture.make_runner(Toy(mistake).step, runtime)
        x = torch.randn(3, device=runtime.device)
        try:
            for _ in range(3):
                watch.capturing = False
                runner(None, x)
        except Exception as error:
            kind = "device mix" if "device" in str(error).lower() else type(error).__name__
            return sorted({found.kind for found in watch.findings} | {kind})
    return sorted({found.kind for found in watch.findings})


def spoil(method: Any) -> None:
    """Keep a tensor of each synthesis step, and read a value of it on the host."""
    for inner in inners(method):

        @functools.wraps(inner.step)
        def planted(step: Callable[..., Any] = inner.step, inner: Any = inner, **variant: Hashable) -> Any:
            made, terms = step(**variant)
            inner.stash = images_of(made).detach() * 2
            inner.scale = float(images_of(made).detach().mean())
            return made, terms

        inner.step = planted


def caught() -> dict[str, dict[str, Any]]:
    """What the scan says of each mistake, and what it must say."""
    found = {name: found_in(mistake) for name, (_, mistake) in MISTAKES.items()}
    with tempfile.TemporaryDirectory() as folder:
        run = scan(Case(method="dafl", teacher="cnn", student="cnn_s"), Path(folder), plant=spoil)
    found["in a method"] = sorted({line[0] for line in run["findings"] if line[1]})
    return {"found": found, "expected": {name: kind for name, (kind, _) in MISTAKES.items()}}
