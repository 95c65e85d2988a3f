"""The checkpoints of a run: when one is due, how many are kept, and what is said when an older one is taken up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.files.write import drop_folder
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.training.checkpoints.checkpoint import Checkpoint, oldest_record, save_checkpoint
from dfkd_fast.training.checkpoints.identity import Identity
from dfkd_fast.training.loop import Loop
from dfkd_fast.training.ranks import Resumed, checkpoint_folder, drop_other_checkpoints


class Keeper:
    """Keeps the newest checkpoints of one rank."""

    def __init__(self, config: TrainConfig, runtime: Runtime, identity: Identity, student: ModelInfo) -> None:
        """`student`: what the network that the run saves expects, so that a checkpoint's can be used alone."""
        self.config, self.runtime, self.folder = config, runtime, config.run_folder
        self._said = {"identity": identity, "student": student.header()}
        self._abandoned: list[Path] = []

    def is_last(self, checkpoint: Checkpoint) -> bool:
        """Whether the run ends with this epoch, for now or for good."""
        return checkpoint.epoch + 1 in (self.config.method.epochs, self.config.stop_after_epoch)

    def is_due(self, checkpoint: Checkpoint) -> bool:
        """Whether `--checkpoint.every` asks for this one."""
        return self.is_last(checkpoint) or (checkpoint.epoch + 1) % self.config.checkpoint.every == 0

    def save(self, checkpoint: Checkpoint, loop: Loop) -> None:
        """Write it, drop what is too old, and give up the images that only dropped ones need."""
        checkpoints = checkpoint_folder(self.folder, self.runtime)
        if self.runtime.is_main or not self.runtime.global_batch:
            while self._abandoned:  # they would count among those that are kept
                drop_folder(self._abandoned.pop())
            checkpoint = replace(checkpoint, record={**checkpoint.record, **self._said})
            save_checkpoint(checkpoints, checkpoint, keep=self.config.checkpoint.keep)
        self.runtime.barrier()  # what another number of processes has left goes once all ranks are safe
        if self.runtime.is_main:
            drop_other_checkpoints(self.folder, self.runtime.shares)
        oldest = oldest_record(checkpoints)
        if oldest is not None:  # else nothing is given up that another whole one may need
            loop.pool.release(oldest["pool"])

    def take_up(self, resumed: Resumed, loop: Loop, say: Callable[[str], None]) -> tuple[int, str]:
        """Restore what a run is taken up from and say so; returns the phase to run next."""
        checkpoint = resumed.checkpoint
        assert checkpoint is not None, "nothing to take up"
        first = loop.restore(checkpoint)
        note = loop.logger.truncate(checkpoint.epoch, checkpoint.phase, checkpoint.record["metrics"])
        for why in (*(f"{each}; an older checkpoint is taken" for each in resumed.damage), note):
            if why:
                say(why)
        before, now = checkpoint.record["identity"]["data"]["path"], self.config.data
        if before != now:
            say(f"evaluation goes on with --data {now}, where it was {before}")
        phases = "1 phase is" if resumed.repeated == 1 else f"{resumed.repeated} phases are"
        repeated = f"; {phases} repeated" if resumed.repeated else ""
        say(f"resumed after {checkpoint.phase} of epoch {checkpoint.epoch + 1}{repeated}")
        self._abandoned = resumed.abandoned
        return first
