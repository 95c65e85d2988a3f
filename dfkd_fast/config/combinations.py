"""Settings of a recipe that do not go with each other, though each by itself is within its limits. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from dfkd_fast.errors import UserError


def prior_count(prior: str) -> int:
    """The number of pictures that a pool begins with, of `--pool.prior`. Raises UserError for what names none."""
    found = re.fullmatch(r"procedural:([1-9]\d{0,8})", prior)
    if prior and found is None:
        raise UserError(f"--pool.prior {prior}: choose procedural:N, for N pictures, 1 or more")
    return int(found[1]) if found else 0


def check_together(values: dict[str, Any]) -> None:
    """Raise UserError for the first that do not; `values` are all settings by their dotted keys."""
    prior_count(values.get("pool.prior", ""))
    patience, steps = values.get("method.patience", 0), values.get("method.synthesis_steps", 0)
    if patience and values["method.select_iterate"] != "best":
        raise UserError(
            f"--method.patience {patience}: no image is better than another where the last is kept "
            f"(--method.select-iterate {values['method.select_iterate']}); choose 0"
        )
    if patience >= max(steps, 1):
        raise UserError(
            f"--method.patience {patience}: ends no round of {steps} steps; choose fewer than --method.synthesis-steps"
        )
    if values.get("method.rounds") == 0 and not (values.get("method.warmup_rounds") and values["method.warmup_epochs"]):
        raise UserError("--method.rounds 0: makes no images; choose 1 or more, or --method.warmup-rounds and epochs")
    steps = values.get("method.student_lr_steps")
    if values.get("method.student_schedule") == "one-cycle" and steps:
        raise UserError(
            "--method.student-schedule one-cycle: has no room for --method.student-lr-steps "
            f"{' '.join(map(str, steps))}; give that flag no value, or choose epochs"
        )
    if values.get("method.student_optimizer") == "nesterov" and not values["method.student_momentum"]:
        raise UserError("--method.student-momentum 0: Nesterov's needs some; choose more, or --student-optimizer sgd")
