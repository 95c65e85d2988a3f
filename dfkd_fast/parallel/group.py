"""The processes of one run: how they find each other, and what is said when one is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from dfkd_fast.errors import LostRank

PATIENCE = timedelta(minutes=10)
"""how long a rank waits for another in a step before it takes it for lost; a closed connection is noticed at once"""
LONG_PATIENCE = timedelta(days=7)
"""where one rank works alone for the others: it trains a teacher, say"""

_LOST = ("connection", "timed out", "timeout", "broken pipe", "socket", "peer")


def join(device: torch.device) -> tuple[int, int]:
    """Rank and number of the processes that torchrun has started, joined over gloo or NCCL; (0, 1) without it."""
    if not distributed.is_available() or not (distributed.is_initialized() or distributed.is_torchelastic_launched()):
        return 0, 1
    if not distributed.is_initialized():
        with _noticed():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return distributed.get_rank(), distributed.get_world_size()


def all_reduce(value: Tensor) -> None:
    """Sum over ranks, in place. Raises LostRank where another one is gone."""
    with _noticed():
        distributed.all_reduce(value)


def barrier(group: Any = None) -> None:
    """Wait until every rank is here. Raises LostRank where another one is gone."""
    with _noticed():
        distributed.barrier(group)


def patient_group() -> Any:
    """All ranks, for a wait of hours, which the group of the steps would take for a loss. Every rank calls it."""
    with _noticed():
        return distributed.new_group(backend="gloo", timeout=LONG_PATIENCE)


@contextmanager
def _noticed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        if not isinstance(error, distributed.DistError) and not any(word in str(error).lower() for word in _LOST):
            raise
        raise LostRank(f"another process of the run has ended or does not answer ({text[0][:120]})") from error
