"""Choice of the implementation that runs an operator: `use` sets it, `backends` lists it, operators call `pick`.

`auto` takes the first of Triton, native, reference that can run (on the CPU: native, reference) and is the only choice
that falls back. An explicit choice that cannot run raises and says why. float64 always runs the reference: the fast
forms accumulate in float32.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

NAMESPACE = (__package__ or "dfkd_kernels").replace(".", "_")
"""torch.library namespace of this copy of the package: two copies under different names coexist"""

CHOICES = ("auto", "reference", "triton", "native")

_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


class Support(NamedTuple):
    """Where an operator has a fast form. Empty: the reference only."""

    triton: tuple[torch.dtype, ...] = ()
    """dtypes of the Triton form"""
    native: str = ""
    """name of the C++ operator in torch.ops.dfkd_native; the devices that it was built for are asked of torch"""
    native_dtypes: tuple[torch.dtype, ...] = ()


OPS: dict[str, Support] = {
    "bn_act_moments": Support(_HALF_AND_SINGLE, "bn_act_moments_forward", _HALF_AND_SINGLE),
    "bn_act_train": Support(_HALF_AND_SINGLE, "bn_act_train_forward", _HALF_AND_SINGLE),
    "bn_stat_loss": Support((torch.float32,), "bn_stat_loss", (torch.float32,)),
    "cam_margin_loss": Support(_HALF_AND_SINGLE, "cam_margin_forward", _HALF_AND_SINGLE),
    "kd_kl": Support(_HALF_AND_SINGLE, "kd_kl_forward", _HALF_AND_SINGLE),
    "gather_augment": Support(_HALF_AND_SINGLE, "gather_augment", _HALF_AND_SINGLE),
    "priority": Support((torch.float32,), "priority_update", (torch.float32,)),
}


class Row(NamedTuple):
    """One line of `backends()`."""

    op: str
    backend: str
    available: bool
    reason: str
    """why it cannot run here; empty if it can"""
    active: bool
    """whether the current choice runs it, on this machine's device, for float32"""


_choices: dict[str, str] = dict.fromkeys(OPS, "auto")
_assumed = ""
"""the form that `assumed` pretends can run"""


def use(choice: str = "auto", *, op: str | None = None) -> list[Row]:
    """Choose the backend of all operators, or of one.

    Call it before torch.compile: compiled code keeps the choice that it was traced with.

    Args:
        choice: "auto", "reference", "triton" or "native".
        op: a key of `OPS`; None: all of them.

    Returns:
        the table of `backends()`.

    Raises:
        ValueError: unknown choice or operator, or an explicit choice that cannot run on this machine.
    """
    if choice not in CHOICES:
        raise ValueError(f"choice {choice!r}: choose auto, reference, triton or native")
    if op is not None and op not in OPS:
        raise ValueError(f"op {op!r}: choose one of {', '.join(OPS)}")
    chosen = OPS if op is None else (op,)
    if choice != "auto":
        for name in chosen:
            reasons = [why_not(name, choice, device, torch.float32) for device in _devices()]
            if all(reasons):
                raise ValueError(f"choice {choice!r}: {name} cannot run it: {reasons[0]}")
    _choices.update(dict.fromkeys(chosen, choice))
    _resolve.cache_clear()
    return backends()


def backends() -> list[Row]:
    """The table of operators and backends on this machine's main device, with the reason where one cannot run."""
    device = _devices()[0]
    rows = []
    for op in OPS:
        for backend in CHOICES[1:]:
            reason = why_not(op, backend, device, torch.float32)
            rows.append(Row(op, backend, not reason, reason, not reason and backend == _current(op, device)))
    return rows


def pick(op: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs `op` for tensors of this device type and dtype: "reference", "triton" or "native"."""
    return _resolve(op, device, dtype)


# What torch.compiler.assume_constant_result sets, without the second that importing it takes: compiled code asks once.
pick._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not(op: str, backend: str, device: str, dtype: torch.dtype) -> str:
    """Why `backend` cannot run `op` there, in one line; empty if it can."""
    support = OPS[op]
    if backend == "reference":
        return ""
    if backend == "triton":
        if dtype not in support.triton:
            return f"no Triton form for {dtype}" if support.triton else "no Triton form"
        return _why_no_triton(device)
    if native_ops() is None:
        return "the C++ extension is not built (pip install --no-build-isolation)"
    if not support.native or not _has_kernel(support.native, device):
        return f"no native form for {device}"
    return "" if dtype in support.native_dtypes else f"no native form for {dtype}"


@functools.cache
def native_ops() -> Any:
    """torch.ops.dfkd_native, loading the extension beside this package at the first call; None if there is none."""
    if not hasattr(torch.ops.dfkd_native, "bn_act_moments_forward"):
        spec = importlib.util.find_spec(f"{__package__}._C")
        if spec is None or spec.origin is None:
            return None
        torch.ops.load_library(spec.origin)
    return torch.ops.dfkd_native


@contextlib.contextmanager
def assumed(choice: str) -> Iterator[None]:
    """In the block every operator takes its `choice` form ("triton" or "native") where it has one for the dtype,
    whether or not this machine can run it: for tensors without values (FakeTensorMode), which nothing runs.
    """
    global _assumed
    if choice not in CHOICES[2:]:
        raise ValueError(f"choice {choice!r}: choose triton or native")
    before, _assumed = _assumed, choice
    _resolve.cache_clear()
    try:
        yield
    finally:
        _assumed = before
        _resolve.cache_clear()


@functools.cache
def _resolve(op: str, device: str, dtype: torch.dtype) -> str:
    choice = _choices[op]
    if _assumed:
        has_form = dtype in (OPS[op].triton if _assumed == "triton" else OPS[op].native_dtypes)
        return _assumed if has_form else "reference"
    if dtype == torch.float64:
        return "reference"
    if choice == "auto":
        order = ("triton", "native") if device == "cuda" else ("native",)
        return next((name for name in order if not why_not(op, name, device, dtype)), "reference")
    reason = why_not(op, choice, device, dtype)
    if reason:
        raise ValueError(f"use({choice!r}): {op} cannot run it: {reason}")
    return choice


def _current(op: str, device: str) -> str:
    try:
        return _resolve(op, device, torch.float32)
    except ValueError:
        return ""


def _devices() -> tuple[str, ...]:
    return ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)


def _why_no_triton(device: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return _why_no_interpreter()
    if device == "cuda":
        return ""
    return f"Triton does not run on {device} tensors (TRITON_INTERPRET=1 interprets it, for tests)"


def _why_no_interpreter() -> str:
    """Triton 3.6's interpreter takes arrays of one element for numbers, which numpy 2.4 no longer allows."""
    triton, numpy = (importlib.metadata.version(name) for name in ("triton", "numpy"))
    if _release(triton) < (3, 7) and _release(numpy) >= (2, 4):
        return f"Triton {triton}'s interpreter fails with numpy {numpy} (pip install 'numpy<2.4', or Triton 3.7)"
    return ""


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _has_kernel(name: str, device: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    if key is None or not hasattr(torch.ops.dfkd_native, name):  # an extension built before the operator was written
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"dfkd_native::{name}", key)
