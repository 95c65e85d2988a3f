"""Reports of a run: one JSON line per phase and evaluation in metrics.jsonl, and its progress on the console."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd_fast.files.write import append_line, sync_file, write_file
from dfkd_fast.reporting.console import Console, ConsoleKind, count, duration, make_console
from dfkd_fast.reporting.meters import Meter

METRICS_FILE = "metrics.jsonl"
_AFTER = {"synthesis": 0, "distillation": 1, "evaluation": 1}
"""after which boundary of its epoch a line may be kept"""


class Pace:
    """Time spent and time to go. The rate is the newest whole epoch's, since warm-up epochs cost something else."""

    def __init__(self, total_epochs: int, gpus: int) -> None:
        self.total_epochs, self.gpus = total_epochs, gpus
        self._before = 0.0
        self._start = time.monotonic()
        self._epoch = -1
        self._epoch_start = self._start
        self._epoch_seconds: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, sessions before a resume included."""
        return self._before + time.monotonic() - self._start

    def restore(self, elapsed: float) -> None:
        """Go on from the time that an earlier session recorded."""
        self._before, self._start = elapsed, time.monotonic()

    def enter(self, epoch: int) -> None:
        """A phase of this epoch starts."""
        now = time.monotonic()
        if epoch != self._epoch:
            if epoch == self._epoch + 1 and self._epoch >= 0:
                self._epoch_seconds = now - self._epoch_start
            self._epoch, self._epoch_start = epoch, now

    def left(self) -> float | None:
        """Seconds to go, or None before the first whole epoch."""
        if self._epoch_seconds is None:
            return None
        into_epoch = min(time.monotonic() - self._epoch_start, self._epoch_seconds)
        return self._epoch_seconds * (self.total_epochs - self._epoch) - into_epoch

    def text(self) -> str:
        """`0.31 GPU-h of ~1.90 | eta 1h12m`; on a CPU `12m30s of ~1h24m | eta 1h12m`."""
        spent, left = self.elapsed, self.left()
        if self.gpus:
            hours = self.gpus / 3600
            text = f"{spent * hours:.2f} GPU-h" + ("" if left is None else f" of ~{(spent + left) * hours:.2f}")
        else:
            text = duration(spent) + ("" if left is None else f" of ~{duration(spent + left)}")
        return text if left is None else f"{text} | eta {duration(left)}"


class PhaseMeter:
    """Counts the steps of one phase and shows them; `RunLogger.phase` makes it."""

    def __init__(self, logger: RunLogger, total_steps: int) -> None:
        self._logger, self._total_steps = logger, total_steps
        self._meter = Meter()
        self._start = time.perf_counter()
        self._read_at, self._read_images = self._start, 0
        self._end: float | None = None
        self.steps = 0
        self.figures: dict[str, float] = {}
        """what is reported beside the means of the loss terms"""

    def step(self, terms: Mapping[str, Tensor], images: int) -> None:
        """One step is done: its scalar loss terms and its images. Waits for the device every `log_every` steps."""
        self._meter.update(terms, images)
        self.steps += 1
        self._logger.console.advance(self.steps)
        if self._logger.is_main and self.steps % self._logger.log_every == 0 and self.steps < self._total_steps:
            terms_now = self._meter.read()
            now = time.perf_counter()
            speed = (self.images - self._read_images) / (now - self._read_at)
            self._read_at, self._read_images = now, self.images
            self._logger.console.status(self._logger.status(terms_now, speed))

    def means(self) -> dict[str, float]:
        """Mean of each loss term over the phase so far."""
        return self._meter.means()

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self._meter.images

    @property
    def seconds(self) -> float:
        """Seconds from the phase's start to its end, or to now."""
        return (self._end or time.perf_counter()) - self._start

    def stop(self) -> dict[str, float]:
        """Wait for the device, stop the clock, and return the phase's means."""
        means = self.means()
        self._end = time.perf_counter()
        return means


class RunLogger:
    """The reports of one run. Only the main rank writes and prints."""

    def __init__(
        self,
        run_dir: Path,
        *,
        total_epochs: int,
        is_main: bool = True,
        console: ConsoleKind = "auto",
        log_every: int = 50,
        gpus: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """`gpus`: how many GPUs the run holds, for GPU-hours; 0 on a CPU, where wall time is shown. `device`: this
        rank's, whose memory is shown with them.
        """
        self.file = run_dir / METRICS_FILE
        self.is_main, self.log_every = is_main, log_every
        self.console: Console = make_console(console, is_main=is_main)
        self.pace, self.device = Pace(total_epochs, gpus), device
        self._accuracy: float | None = None
        self._written = self._crc = 0  # bytes of the file, which are ASCII, and their checksum

    @contextmanager
    def phase(self, name: str, epoch: int, total_steps: int) -> Iterator[PhaseMeter]:
        """Show a phase while the block runs, and record it when the block ends; a block that raises leaves no record.

        `epoch` counts from 0 and is shown from 1.
        """
        self.pace.enter(epoch)
        title = f"epoch {epoch + 1}/{self.pace.total_epochs} {name}"
        self.console.begin(title, total_steps)
        try:
            meter = PhaseMeter(self, total_steps)
            yield meter
            means = meter.stop() | meter.figures
        finally:
            self.console.end()
        self.console.print(f"{title} | {self.status(means, meter.images / max(meter.seconds, 1e-9))}")
        self.record(
            epoch=epoch, phase=name, steps=meter.steps, images=meter.images, seconds=round(meter.seconds, 3), **means
        )

    def record(self, **values: Any) -> None:
        """Append one line to metrics.jsonl, with the seconds since the run's start. NaN and infinity become null."""
        if not self.is_main:
            return
        if "top1" in values:
            self._accuracy = values["top1"]
        line = json.dumps(_finite({**values, "elapsed": round(self.pace.elapsed, 3)}), allow_nan=False)
        append_line(self.file, line)
        self._written += len(line) + 1
        self._crc = zlib.crc32(f"{line}\n".encode(), self._crc)

    def message(self, text: str) -> None:
        """Print a line that is no metric."""
        self.console.print(text)

    def close(self) -> None:
        """Leave the console as it was found."""
        self.console.end()

    def restart(self) -> None:
        """Forget what a run recorded that was stopped before its first checkpoint."""
        if self.is_main:
            self.file.unlink(missing_ok=True)

    def sync(self) -> dict[str, Any]:
        """Make the lines so far survive a power cut; returns what `truncate` needs to know them again, as JSON."""
        if self.is_main and self._written:
            sync_file(self.file)
        return {"bytes": self._written, "crc": self._crc, "elapsed": self.pace.elapsed}

    def truncate(self, epoch: int, phase: str, synced: Mapping[str, Any] | None = None) -> str:
        """Forget what was recorded after the boundary at the end of `phase` of `epoch`, where a checkpoint stands.

        An evaluation right after that phase belongs to it and stays. The clock goes on from what was recorded there.
        `synced`: what `sync` returned there. Says what is not as it was then, if anything; whole lines stay all the
        same.
        """
        content = self.file.read_bytes() if self.file.exists() else b""
        if synced is not None and zlib.crc32(content[: synced["bytes"]]) == synced["crc"]:
            kept, damage = content[: synced["bytes"]], False
        else:
            last = (epoch, _AFTER[phase])
            lines = [item for item in read_metrics(self.file) if (item["epoch"], _AFTER.get(item["phase"], 1)) <= last]
            kept, damage = b"".join(json.dumps(item).encode() + b"\n" for item in lines), synced is not None
            self.pace.restore(lines[-1]["elapsed"] if lines else 0.0)
        if synced is not None:
            self.pace.restore(synced["elapsed"])
        self._written, self._crc = len(kept), zlib.crc32(kept)
        if self.is_main and kept != content:
            write_file(self.file, kept)
        whole = kept.count(b"\n")
        return f"{self.file}: not as the run wrote it; {whole} lines are whole and stay" if damage else ""

    def status(self, terms: Mapping[str, float], images_per_second: float) -> str:
        """Loss terms, last accuracy, speed, memory and time: what a progress line shows after its title."""
        parts = [f"{name} {value:.3g}" for name, value in terms.items()]
        if self._accuracy is not None:
            parts.append(f"acc {100 * self._accuracy:.1f} (last)")
        parts.append(f"{count(images_per_second)} img/s")
        if self.pace.gpus:
            parts.append(f"mem {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB")
        return " | ".join([*parts, self.pace.text()])


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a line that a crash has cut off, or that is damaged, is left out."""
    records = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            item = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(item, dict) and {"epoch", "phase", "elapsed"} <= item.keys():
            records.append(item)
    return records


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place, in nested values too."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
