"""The operators of the priority tree: write leaves, empty slots, draw. They own no state; `sampler.py` does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import native_ops
from ..checks import check_range
from ..registration import Operator
from . import reference

# With many rows the Triton form compares each with each other to find repeated slots: beyond this torch's scatter wins.
MAX_TRITON_ROWS = 32768


def _launch_update(
    leaves: Tensor,
    sums: Tensor,
    counts: Tensor,
    capacity: int,
    indices: Tensor,
    deltas: Tensor,
    is_weights: Tensor | None,
    alpha: float,
    eps: float,
    backend: str,
) -> None:
    if len(indices) == 0:
        return
    check_range("indices", indices, capacity)
    tree, deltas = (leaves, sums, counts, capacity), deltas.float()
    if backend == "triton" and len(indices) <= MAX_TRITON_ROWS:
        from . import launch

        launch.update(*tree, indices.contiguous(), deltas.contiguous(), is_weights, alpha, eps)
        return
    if is_weights is not None:
        deltas = deltas * is_weights
    if backend == "native":
        native_ops().priority_update(*tree, indices.contiguous(), deltas.contiguous(), alpha, eps)
    else:
        reference.update(*tree, indices, deltas, alpha, eps)


def _launch_clear(leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, indices: Tensor, backend: str) -> None:
    if len(indices) == 0:
        return
    check_range("indices", indices, capacity)
    arguments = (leaves, sums, counts, capacity, indices.contiguous())
    if backend == "native":
        native_ops().priority_clear(*arguments)
    elif backend == "triton":
        from . import launch

        launch.clear(*arguments)
    else:
        reference.clear(*arguments)


def _launch_sample(
    leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, uniforms: Tensor, beta: float, backend: str
) -> tuple[Tensor, Tensor]:
    if counts.device.type == "cpu" and not counts[-reference.FANOUT :].any():
        raise ValueError("sample: every slot is empty; update() some first")
    arguments = (leaves, sums, counts, capacity, uniforms, beta)
    if backend == "native":
        return native_ops().priority_sample(*arguments)
    if backend == "triton":
        from . import launch

        return launch.sample(*arguments)
    return reference.sample(*arguments)


def _fake_nothing(*_: Any) -> None:
    return None


def _fake_sample(
    leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, uniforms: Tensor, beta: float, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(uniforms, dtype=torch.int64), torch.empty_like(uniforms, dtype=torch.float32)


_TREE = "Tensor(a!) leaves, Tensor(b!) sums, Tensor(c!) counts, int capacity"
update = Operator(
    f"priority_update({_TREE}, Tensor indices, Tensor deltas, Tensor? is_weights, float alpha, float eps, "
    "str backend) -> ()",
    _launch_update,
    _fake_nothing,
)
clear = Operator(f"priority_clear({_TREE}, Tensor indices, str backend) -> ()", _launch_clear, _fake_nothing)
sample = Operator(
    "priority_sample(Tensor leaves, Tensor sums, Tensor counts, int capacity, Tensor uniforms, float beta, "
    "str backend) -> (Tensor indices, Tensor is_weights)",
    _launch_sample,
    _fake_sample,
)
