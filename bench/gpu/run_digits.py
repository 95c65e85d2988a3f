"""`dfkd-fast train nayer --preset digits` end to end: teacher, rounds, student, evaluation; then stopped and resumed.

With `--deterministic` the run that was resumed must be the one that was not stopped, bit for bit.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from step_report import StepReport, open_report

EPOCHS, STOP = 8, 5
TINY = (
    *("--warmup-epochs", "1", "--warmup-rounds", "1", "--synthesis-steps", "2", "--synthesis-batch-size", "10"),
    *("--student-steps", "2", "--batch-size", "8", "--noise-features", "8", "--generator-width", "8"),
    *("--precision", "fp32", "--threads", "1", "--teacher-recipe.epochs", "1"),
    *("--teacher", "cnn", "--student", "cnn_s", "--eval.every", "0"),
)


def train(report: StepReport, name: str, *more: str, deterministic: bool = True) -> float:
    """Seconds that a command took; raises if it ends badly."""
    import torch

    from dfkd_fast.cli.main import main as dfkd_fast

    torch.use_deterministic_algorithms(False)  # a run sets it, and no run takes it back
    epochs = 2 if report.rehearse else EPOCHS
    recipe = ["train", "nayer", "--preset", "digits", "--epochs", str(epochs), "--device", report.device]
    recipe += ["--run-dir", name, *(["--deterministic"] if deterministic else []), *(TINY if report.rehearse else ())]
    start = time.perf_counter()
    status = dfkd_fast(["train", "--resume", name] if more == ("--resume",) else [*recipe, *more])
    if status != 0:
        raise RuntimeError(f"train {name} {' '.join(more)}: exit status {status}")
    return time.perf_counter() - start


def main() -> int:
    """A row for the whole run, one for the comparison, one for what the switch costs."""
    report = open_report("train", __doc__)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["DFKD_FAST_CACHE"] = folder  # the teacher is trained here
        seconds = train(report, "whole")
        record = json.loads(Path("whole/run.json").read_text())
        report.row("whole", seconds=seconds, top1=record["top1_last"], teacher_top1=record["teacher_top1"])
        train(report, "pieces", "--stop-after-epoch", str(1 if report.rehearse else STOP))
        train(report, "pieces", "--resume")
        differs = differing("whole", "pieces")
        report.row("resumed", ok=not differs, differs=", ".join(differs) or "nothing")
        if not report.rehearse:
            free = train(report, "free", deterministic=False)
            report.row("deterministic", seconds=seconds, free_seconds=free)
    return report.status()


def differing(first: str, second: str) -> list[str]:
    """Tensors of the two students, and files of their pools, that are not the same bits."""
    import torch
    from safetensors.torch import load_file

    ours, theirs = (load_file(f"{run}/student.safetensors") for run in (first, second))
    names = [name for name in sorted(ours.keys() | theirs.keys()) if not _equal(ours, theirs, name, torch.equal)]
    files = [path.relative_to(first) for path in sorted(Path(first, "pool").rglob("*.bin"))]
    return names + [str(file) for file in files if Path(first, file).read_bytes() != Path(second, file).read_bytes()]


def _equal(ours: dict, theirs: dict, name: str, equal) -> bool:
    return name in ours and name in theirs and equal(ours[name], theirs[name])


if __name__ == "__main__":
    sys.exit(main())
