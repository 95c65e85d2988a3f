"""What each of several processes does of a run: its share of every batch and budget."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch

from dfkd_fast.checkpoint import Checkpoint, latest_checkpoint
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import MethodConfig
from dfkd_fast.pool.shards import shard_folder
from dfkd_fast.runtime import Runtime

C = TypeVar("C", bound=MethodConfig)

BATCHES = ("synthesis_batch_size", "batch_size")
BUDGETS = ("full_images", "image_budget", "buffer_size")


def share_of_rank(config: C, world_size: int) -> C:
    """The recipe as one of `world_size` ranks runs it: as many rounds and steps, with its part of the images.

    Raises UserError for a batch that cannot be shared out evenly.
    """
    known = {item.name: getattr(config, item.name) for item in fields(config)}
    for name in BATCHES:
        if known[name] % world_size:
            flag = f"--method.{name.replace('_', '-')} {known[name]}"
            raise UserError(f"{flag}: choose a multiple of {world_size}, the number of processes")
    shares = {name: known[name] // world_size for name in BATCHES}
    shares |= {name: -(-known[name] // world_size) for name in BUDGETS if known.get(name)}
    return replace(config, **shares)


def checkpoint_folder(run_dir: Path, runtime: Runtime) -> Path:
    """Where this rank's checkpoints lie: each has a generator, or images, of its own."""
    return shard_folder(run_dir / "checkpoints", runtime.rank, runtime.world_size)


def checkpoint_to_resume(run_dir: Path, runtime: Runtime) -> Checkpoint | None:
    """This rank's newest checkpoint, None where the run has none.

    Raises UserError where another number of processes wrote them, or where ranks would go on at different places.
    """
    own = checkpoint_folder(run_dir, runtime)
    newest = latest_checkpoint(own)
    names = [path.name for path in (run_dir / "checkpoints").glob("[!.]*")]
    makers = {name.rpartition("-of-")[2] if name.startswith("rank-") else "1" for name in names}
    if makers - {str(runtime.world_size)}:
        raise UserError(f"--resume {run_dir}: made by {max(makers)} process(es), not {runtime.world_size}; use as many")
    if runtime.world_size == 1:
        return newest
    common = torch.tensor(-1 if newest is None else newest.boundary, device=runtime.device)
    torch.distributed.all_reduce(common, op=torch.distributed.ReduceOp.MIN)  # a crash may have come between two ranks
    return latest_checkpoint(own, until=int(common))
