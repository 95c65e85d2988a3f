"""Our steps against the released codes' style (bench/released_style) on the card, by turns: medians of ratios of wall
time. The baseline's DataLoader has the four workers of the released codes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH), str(BENCH / "steps")]

import torch  # noqa: E402
from cases import CASES, Case, Ours, Theirs  # noqa: E402
from step_report import StepReport, open_report  # noqa: E402

TINY = ("--teacher", "wrn16_1", "--student", "wrn16_1", "--synthesis-batch-size", "8", "--batch-size", "8")
WARM_UP = 10  # of both kinds of round that an epoch may have: three ordinary steps of ours, a capture, replays
TURNS = 9


def race(report: StepReport, name: str, case: Case, variant: str) -> None:
    """A row for each kind of step."""
    warm_up, turns = (1, 1) if report.rehearse else (WARM_UP, TURNS)
    workers = 0 if report.rehearse else 4
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(case, variant, Path(folder) / "ours", device=report.device)
        (Path(folder) / "theirs").mkdir()
        theirs = Theirs(case, Path(folder) / "theirs", device=report.device, workers=workers)
        for phase in ("synthesis", "student"):
            samples = [[timed(side, phase, report) for side in (theirs, ours)] for _ in range(warm_up + turns)][
                warm_up:
            ]
            ratio = statistics.median(their / our for their, our in samples)
            their, our = (statistics.median(each) for each in zip(*samples, strict=True))
            report.row(f"{name} {variant} {phase}", ratio=ratio, ours_ms=1e3 * our, baseline_ms=1e3 * their)


def timed(side: Ours | Theirs, phase: str, report: StepReport) -> float:
    """Seconds of a step, the device waited for before and after."""
    wait = torch.cuda.synchronize if report.device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    getattr(side, phase)()
    wait()
    return time.perf_counter() - start


def main() -> int:
    """Every case in bf16."""
    report = open_report("race", __doc__)
    if report.rehearse:
        torch.set_num_threads(1)
    for name, case in list(CASES.items())[: 1 if report.rehearse else None]:
        small = replace(case, flags=TINY) if report.rehearse else case
        race(report, name, small, "fp32" if report.rehearse else "bf16")
    return report.status()


if __name__ == "__main__":
    sys.exit(main())
