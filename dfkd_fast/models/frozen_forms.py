"""The forms that a frozen teacher may be asked for, and where each can be had."""

from __future__ import annotations

import torch

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.int8_answers import check_int8_runtime


def check_foldable(name: str, runtime: Runtime, *, has_norms: bool) -> None:
    """Raise UserError where `--fold-teacher` cannot be had."""
    if runtime.device.type != "cpu":
        raise UserError(
            f"--fold-teacher: the run is on {runtime.device.type}, and it gains on a CPU only; leave it out"
        )
    if not has_norms:
        raise UserError(f"--fold-teacher: {name} has no BatchNorm that could be folded; leave it out")


def lower_dtype(precision: str, runtime: Runtime) -> torch.dtype:
    """The dtype that `--teacher-precision` asks for, of int8 that of all but answers. Raises UserError where the run
    computes in no more than it, or cannot have it.
    """
    if precision == "same":
        return runtime.compute_dtype
    if precision == "int8":
        check_int8_runtime(runtime)
        return runtime.compute_dtype
    if runtime.precision not in ("fp32", "tf32"):
        raise UserError(
            f"--teacher-precision {precision}: the run computes in {runtime.precision}, and the teacher as it does; "
            "choose same, or --precision fp32"
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
