"""One-time compilation: compiled functions and captured graphs, and the time that they take before steps run fast."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import torch

from dfkd_fast.errors import UserError
from dfkd_fast.files.cache import cache_folder

Compile = Literal["off", "default", "max"]

P = ParamSpec("P")
R = TypeVar("R")

# Inductor's own graphs would hold only parts of a step: whole steps are captured around the compiled function.
_MODES = {"default": "default", "max": "max-autotune-no-cudagraphs"}


class PreparationClock:
    """Wall seconds spent on compiling and capturing. What starts within another counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._open, self._since = 0, 0.0
        self._listens = False

    def start(self, *_: object) -> None:
        """Something begins to be prepared."""
        if self._open == 0:
            self._since = time.perf_counter()
        self._open += 1

    def stop(self, *_: object) -> None:
        """It is ready."""
        self._open -= 1
        if self._open == 0:
            self.seconds += time.perf_counter() - self._since

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what the block takes."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def listen(self) -> None:
        """From now on count what torch.compile takes, whenever that is: a backward pass compiles when it first runs."""
        if not self._listens:
            from torch._dynamo.callback import callback_handler

            callback_handler.register_start_callback(self.start)
            callback_handler.register_end_callback(self.stop)
            self._listens = True


CLOCK = PreparationClock()
"""this process's"""


def compiled(function: Callable[P, R], mode: Compile) -> Callable[P, R]:
    """`function` through torch.compile, or as it is where `mode` is "off". Shapes are static.

    What it makes is kept on disk for the next run: see `keep_compile_caches`.
    """
    if mode == "off":
        return function
    CLOCK.listen()
    trace_gradients()
    return torch.compile(function, mode=_MODES[mode], dynamic=False)


def trace_gradients() -> None:
    """Let torch.compile take `torch.autograd.grad` into its graph (Grad-CAM); by default it would stop there."""
    import torch._dynamo

    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        torch._dynamo.config.trace_autograd_ops = True


def keep_compile_caches(mode: Compile = "default") -> None:
    """Keep Inductor's and Triton's caches below the cache (`dfkd_fast.files.cache`), in no shared folder.
    `mode` "off": Triton's alone, whose kernels every run on a GPU compiles.

    TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR, where they are set, stay what they are. Inductor sets the first when
    it is imported, which building an optimiser does: so this comes first (`runtime.make_runtime`). What lies there is
    run as code: the folders are made for this user alone, and UserError is raised where another could write to them.
    """
    folder = cache_folder("compile")
    caches = [("TRITON_CACHE_DIR", "triton")]
    flag, choice = "--device cuda", "--device cpu"
    if mode != "off":
        caches.insert(0, ("TORCHINDUCTOR_CACHE_DIR", "inductor"))
        flag, choice = "--compile", "off"
    variables = " and ".join(variable for variable, _ in caches)
    for variable, name in caches:
        if variable not in os.environ:
            _make_private(folder, folder / name)
        chosen = Path(os.environ.setdefault(variable, str(folder / name))).absolute()
        for path in (chosen, *chosen.parents):
            if path.exists() and _others_can_write(path.stat(), last=path == chosen):
                raise UserError(
                    f"{flag}: what lies in {chosen} is run as code, and others can write to {path}; name folders of "
                    f"your own in {variables}, or choose {choice}"
                )


def _make_private(*folders: Path) -> None:
    try:
        for folder in folders:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"DFKD_FAST_CACHE {folder}: cannot be written ({error.strerror})") from error


def _others_can_write(found: os.stat_result, *, last: bool) -> bool:
    """Whether another user, root apart, can put files into a folder or, where it is not the `last` one of a path,
    replace what is in it: a sticky folder, as /tmp is, forbids that.
    """
    if found.st_uid not in (os.geteuid(), 0):
        return True
    if not last and found.st_mode & stat.S_ISVTX:
        return False
    shared_group = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)
    return bool(found.st_mode & stat.S_IWOTH or shared_group)


def _is_own_group(number: int) -> bool:
    """Whether a group is this user's alone, as the group of the same name is on many systems."""
    try:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(number)
    except KeyError:
        return False
    return group.gr_name == user and not set(group.gr_mem) - {user}
