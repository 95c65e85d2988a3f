"""`dfkd-fast train nayer --preset digits` end to end: teacher, rounds, student, evaluation; stopped and resumed.

First as anyone runs it, then with `--deterministic`, where the run that was resumed must be the one that was not
stopped, bit for bit. Neither keeps the other from being tried.
"""

from __future__ import annotations

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


def train(report: StepReport, name: str, *more: str) -> float:
    """Seconds that a command took; raises if it ends badly."""
    import torch

    from dfkd_fast.cli.main import main as dfkd_fast

    torch.use_deterministic_algorithms(False)  # a run sets it, and no run takes it back
    epochs = 2 if report.rehearse else EPOCHS
    recipe = ["train", "nayer", "--preset", "digits", "--epochs", str(epochs), "--device", report.device]
    recipe += ["--run-dir", name, *(TINY if report.rehearse else ())]
    start = time.perf_counter()
    status = dfkd_fast(["train", "--resume", name] if more == ("--resume",) else [*recipe, *more])
    if status != 0:
        raise RuntimeError(f"train {name} {' '.join(more)}: exit status {status}")
    return time.perf_counter() - start


def in_pieces(report: StepReport, name: str, *more: str) -> float:
    """Seconds of a run that was stopped and resumed."""
    stop = str(1 if report.rehearse else STOP)
    return train(report, name, "--stop-after-epoch", stop, *more) + train(report, name, "--resume")


def ordinary(report: StepReport) -> None:
    """The run as anyone starts it, its seconds and its accuracy."""
    from dfkd_fast.training.records.run_record import read_run_record

    seconds = in_pieces(report, "free")
    record = read_run_record(Path("free/run.json"))
    report.row("ordinary", seconds=seconds, top1=record["top1_last"], teacher_top1=record["teacher_top1"])


def whole(report: StepReport) -> None:
    """The deterministic run that is not stopped."""
    report.row("deterministic", seconds=train(report, "whole", "--deterministic"))


def resumed(report: StepReport) -> None:
    """The deterministic run that is, and what of it differs."""
    in_pieces(report, "pieces", "--deterministic")
    differs = differing("whole", "pieces")
    report.row("resumed", ok=not differs, differs=", ".join(differs) or "nothing")


def main() -> int:
    """A row for each part; one that fails has its error, and the next is tried."""
    report = open_report("train", __doc__)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["DFKD_FAST_CACHE"] = folder  # the teacher is trained here
        for chain in ({"ordinary": ordinary}, {"deterministic": whole, "resumed": resumed}):
            if report.done.issuperset(chain):
                continue
            for name, part in chain.items():
                try:
                    part(report)
                except (Exception, SystemExit) as error:
                    words = next(iter(str(error).strip().splitlines()), "")
                    report.row(name, ok=False, error=f"{type(error).__name__}: {words[:150]}")
                    break  # what comes behind it has nothing to compare with
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
