"""How the Triton launches cut a tensor up: read by `launch.py`, rewritten by `tune.py`; one table for all GPUs.

Measured on: nothing yet (`python -m dfkd_kernels.bn_moments.tune` on a GPU). The values are computed: a tile is one or
two 16-byte loads a thread. Forward, 64 registers let four programs of 8 warps share a multiprocessor, 416 programs are
then one wave on 108 of them and on 132, and three stages keep two tiles in flight. Left to itself, the compiler takes
73 to 76 registers on sm_80 with a residual in half precision, channels-last, which three programs share; held to 64 it
spills nothing. The contiguous form, which takes up to 106, would. Nothing is reduced backward: more, shorter programs
even out the tail.
"""

from __future__ import annotations

from typing import NamedTuple


class Tiling(NamedTuple):
    """One row of the table."""

    elements: int
    """of a tile, a power of two"""
    warps: int
    stages: int
    """tiles that are loaded ahead, plus one"""
    programs: int
    """aimed at per launch"""
    registers: int | None = None
    """the most that a thread may have in the forward form with a residual; None: as many as the compiler takes"""


TILINGS = {
    # (direction, layout)
    ("forward", "channels-last"): Tiling(elements=2048, warps=8, stages=3, programs=416, registers=64),
    ("forward", "contiguous"): Tiling(elements=2048, warps=8, stages=3, programs=416),
    ("backward", "channels-last"): Tiling(elements=1024, warps=4, stages=1, programs=8192),
    ("backward", "contiguous"): Tiling(elements=1024, warps=4, stages=1, programs=8192),
}
