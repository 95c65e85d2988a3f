"""`make bench SUITE=methods`: hours of whole recipes on this machine, ours beside a baseline's, which does what the
released codes do; published hours and the arithmetic floor stand beside them. The flags are those of
`dfkd-fast bench methods`.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from released_style.baseline import Baseline
from released_style.recipe import recipe_of

from dfkd_fast.benchmark.methods import Target
from dfkd_fast.benchmark.step_profiler import Timings
from dfkd_fast.benchmark.step_timer import TimingWindow, sample
from dfkd_fast.cli.bench import run
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.work import Work
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError

RESULTS = Path(__file__).parent / "results"
BASELINES = ("nayer", "muse-s")
"""methods that the baseline has"""


def time_baseline(
    target: Target, config: TrainConfig[Any], work: Work, runtime: Runtime, window: TimingWindow
) -> Timings | None:
    """Its steps and what its rounds cost beside them. On a GPU its DataLoader has the four workers of the released
    codes; on a CPU its work counts as the run's own.
    """
    if target.method not in BASELINES:
        return None
    recipe = recipe_of(config, num_classes=target.info.num_classes, full_size=target.info.image_size.short)
    timings, workers = Timings(), 4 if runtime.device.type == "cuda" else 0
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as pool:
        theirs = Baseline(recipe, Path(pool), device=str(runtime.device), workers=workers)
        one = TimingWindow(warmup=0, steps=1, samples=1, clock=window.clock)
        for kind in work.synthesis_steps:
            theirs.begin_round()
            step = partial(theirs.synthesis_step, adversarial=not kind.warmup)
            timings.synthesis[kind] = sample(step, window, runtime)
            cost = sample(theirs.end_round, one, runtime).median
            timings.round |= {round_kind: cost for round_kind in work.rounds if round_kind.warmup == kind.warmup}
        while theirs.pool.written < (window.total + 1) * recipe.batch_size:  # no smaller last batch among the samples
            theirs.end_round()
        timings.student = sample(theirs.student_step, window, runtime)
    return timings


if __name__ == "__main__":
    try:
        given = sys.argv[1:]
        where = [] if any(flag.startswith("--results") for flag in given) else [f"--results={RESULTS}"]
        sys.exit(run(["methods", *given, *where], time_baseline))
    except UserError as error:
        sys.exit(f"bench/predict.py: {error}")
