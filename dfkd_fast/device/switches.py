"""Switches of torch and of the C library that hold for the whole process: convolutions, tf32, determinism, memory."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from dfkd_fast.device.allocator import keep_freed_memory
from dfkd_fast.errors import UserError

_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_FIXED_WORKSPACES = (":4096:8", ":16:8")
"""the two that cuBLAS's manual names: with its own choice, streams share workspaces and sums change their order"""

_NO_FORM = re.compile(r"(\S+) does not have a deterministic implementation")
_NO_WORKSPACE = "not deterministic because it uses CuBLAS"


def set_switches(device: torch.device, precision: str, *, deterministic: bool = False) -> None:
    """Set what a run on `device` in `precision` needs.

    `deterministic` allows torch only algorithms that give the same bits in every run, and an operator that has none
    raises (`named_operator` says it in one line). Without it the switch stays as the program has set it. Raises
    UserError for workspaces of cuBLAS that cannot give the same bits.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # Shapes are static, so that the fastest algorithm of each is worth finding. It is found by timing: another
        # process may find another one.
        torch.backends.cudnn.benchmark = not deterministic
    else:
        keep_freed_memory()
    if deterministic:
        workspaces = os.environ.setdefault(_WORKSPACES, _FIXED_WORKSPACES[0])  # read when cuBLAS is first used
        if device.type == "cuda" and workspaces not in _FIXED_WORKSPACES:
            raise UserError(
                f"--deterministic: the environment has {_WORKSPACES}={workspaces}; choose "
                f"{' or '.join(_FIXED_WORKSPACES)}, or unset it"
            )
        torch.use_deterministic_algorithms(True)


@contextlib.contextmanager
def named_operator() -> Iterator[None]:
    """Raise UserError that names the operator where the block meets one that `--deterministic` does not allow."""
    try:
        yield
    except RuntimeError as error:
        found = _NO_FORM.search(str(error))
        if found:
            raise UserError(
                f"--deterministic: {found.group(1)} has no form that gives the same bits in every run; "
                "choose --no-deterministic"
            ) from error
        if _NO_WORKSPACE in str(error):
            raise UserError(
                f"--deterministic: cuBLAS was in use before the run; set {_WORKSPACES}={_FIXED_WORKSPACES[0]} in the "
                "environment"
            ) from error
        raise
