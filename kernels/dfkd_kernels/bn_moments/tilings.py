"""How the Triton launches cut a tensor up: read by `launch.py`, rewritten by `tune.py`; one table for all GPUs.

Measured on: nothing yet. The values are computed: a tile is one or two 16-byte loads a thread. Forward, about 64
registers let four programs share a multiprocessor, 416 programs are then one wave on 108 of them and on 132, and three
stages keep two tiles in flight. Nothing is reduced backward: more, shorter programs even out the tail.
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


TILINGS = {
    # (direction, layout)
    ("forward", "channels-last"): Tiling(elements=2048, warps=8, stages=3, programs=416),
    ("forward", "contiguous"): Tiling(elements=2048, warps=8, stages=3, programs=416),
    ("backward", "channels-last"): Tiling(elements=1024, warps=4, stages=1, programs=8192),
    ("backward", "contiguous"): Tiling(elements=1024, warps=4, stages=1, programs=8192),
}
