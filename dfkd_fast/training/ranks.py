"""One process's share of a run with several: its part of every batch and budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from dfkd_fast.config.setting import stated_of
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.files.write import drop_folder
from dfkd_fast.methods.base import Method, MethodConfig
from dfkd_fast.pool.disk.shards import shard_folder
from dfkd_fast.training.checkpoints.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    Shelf,
    boundary_of,
    checkpoints_in,
    read_checkpoint,
)

C = TypeVar("C", bound=MethodConfig)

BATCHES = ("synthesis_batch_size", "batch_size")


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
    budgets = [name for name, value in known.items() if value and stated_of(type(config), name).shared_out]
    shares |= {name: -(-known[name] // world_size) for name in budgets}
    return replace(config, **shares)


def check_global_batch(method: Method, name: str) -> None:
    """Raise UserError where the ranks cannot make a method's batches together, in equal parts."""
    size = method.global_batch.size
    for plan in method.pools() if size > 1 else ():
        for batch in BATCHES:
            if getattr(plan, batch) % size:
                flag = f"--method.{batch.replace('_', '-')} {getattr(method.config, batch)}"
                raise UserError(f"{flag}: choose a multiple of {size}, the number of processes, for each image size")


def check_micro_batches(method: Method, name: str, number: int, runtime: Runtime) -> None:
    """Raise UserError where `--synthesis-micro-batches` cannot part a method's batches, or not evenly."""
    if number == 1:
        return
    flag = f"--synthesis-micro-batches {number}"
    if not method.supports.micro_batches:
        raise UserError(f"{flag}: {name} needs its whole batch in one step; choose 1")
    if runtime.global_batch:
        raise UserError(
            f"{flag}: each part has its own BN statistics, which --bn.scope global rules out; choose 1, or rank"
        )
    if runtime.compilation != "off":  # which part it is is Python's: each would be compiled by itself
        raise UserError(f"{flag}: does not go with --compile {runtime.compilation}; choose off")
    for plan in method.pools():
        size = plan.synthesis_batch_size
        if size % number or size // number < 2:  # one image has no batch statistics
            choices = one_of(["1", *(str(parts) for parts in range(2, size // 2 + 1) if size % parts == 0)])
            raise UserError(f"{flag}: batches of {size} images cannot be parted so; choose {choices}")


def checkpoint_folder(run_dir: Path, runtime: Runtime) -> Path:
    """Where this rank's checkpoints lie: each has a generator, or images, of its own; ranks that join their batches
    have the same, which the main one writes.
    """
    return shard_folder(run_dir / "checkpoints", runtime.share, runtime.shares)


class Resumed(NamedTuple):
    """What a run is taken up from."""

    checkpoint: Checkpoint | None
    """this rank's; None where the run has none yet"""
    damage: list[DamagedCheckpoint]
    """why it is not the newest, of all ranks"""
    abandoned: list[Path]
    """this rank's checkpoints of what is repeated now"""
    repeated: int
    """phases between this and the newest checkpoint"""


def checkpoint_to_resume(run_dir: Path, runtime: Runtime) -> Resumed:
    """This rank's checkpoint at the newest boundary where those of all ranks are whole.

    Where another number of processes has come furthest, each rank takes up one of theirs: the student is the same in
    all of them. Raises UserError where there are checkpoints and no boundary has a whole one.
    """
    folder = run_dir / "checkpoints"
    shelves = {
        ranks: [Shelf(shard_folder(folder, rank, ranks)) for rank in range(ranks)]
        for ranks in _makers(folder) | {runtime.shares}
    }
    reached = {ranks: _common_boundary(parts) for ranks, parts in shelves.items()}
    ranks = max(reached, key=lambda ranks: (reached[ranks], ranks == runtime.shares))
    runtime.barrier()  # all have looked before one of them writes
    damage = [why for parts in shelves.values() for shelf in parts for why in shelf.damage.values()]
    mine = shelves[ranks][runtime.share % ranks]
    found = mine.newest(reached[ranks])
    if found is None and damage:
        raise UserError(
            f"--resume {run_dir}: no checkpoint is whole ({'; '.join(map(str, damage))}); take {folder} from a backup, "
            "or delete it, and the run starts again"
        )
    abandoned = [path for path in mine.paths if boundary_of(path) > reached[ranks]]
    newest = max((boundary_of(path) for shelf in shelves[ranks] for path in shelf.paths), default=-1)
    checkpoint = None if found is None else read_checkpoint(found)
    return Resumed(checkpoint, damage, abandoned, newest - reached[ranks] if found is not None else 0)


def drop_other_checkpoints(run_dir: Path, world_size: int) -> None:
    """Delete what another number of processes has written; called once all ranks have a checkpoint of their own.

    Raises OSError: what stays would be offered when the run is resumed.
    """
    folder = run_dir / "checkpoints"
    for ranks in _makers(folder) - {world_size}:
        for rank in range(ranks):
            old = shard_folder(folder, rank, ranks)
            for path in checkpoints_in(old) if ranks == 1 else [old]:
                if path.exists():
                    drop_folder(path)


def _makers(folder: Path) -> set[int]:
    """The numbers of processes that have written checkpoints."""
    makers = {int(path.name.rpartition("-of-")[2]) for path in folder.glob("rank-*-of-*")}
    return makers | {1} if checkpoints_in(folder) else makers


def _common_boundary(shelves: Sequence[Shelf]) -> int:
    """The newest boundary where all ranks have a whole checkpoint (a crash may come between two); -1: none."""
    until: int | None = None
    while True:
        newest = [shelf.newest(until) for shelf in shelves]
        found = [boundary_of(path) for path in newest if path is not None]
        if len(found) < len(newest):
            return -1
        if min(found) == max(found):
            return found[0]
        until = min(found)
