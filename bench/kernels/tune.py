"""Offline tuner: time `bn_act_moments` on this machine's GPU and rewrite the table of tilings in its `launch.py`.

    python bench/kernels/tune.py [--dry-run]

For each direction and layout it takes the tiling with the least geometric mean of the times over `SHAPES` and dtypes.
The table is committed: a launch never measures, and all GPUs share one table, because the sums' last bits depend on it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from dfkd_kernels.bn_act_moments import launch
from dfkd_kernels.bn_act_moments.launch import TILINGS, Tiling
from dfkd_kernels.bn_act_moments.reference import RELU

SHAPES = ((200, 64, 56, 56), (200, 256, 28, 28), (200, 512, 14, 14), (200, 2048, 4, 4), (256, 64, 32, 32))
"""layers of ResNet-34 and ResNet-50 at 112 px, and of a CIFAR network"""
DTYPES = (torch.bfloat16, torch.float32)
SEARCH: dict[str, list[tuple[int, int, int, int, int | None]]] = {
    "forward": list(itertools.product((1024, 2048, 4096), (4, 8), (1, 2, 3), (208, 416, 832), (64, None))),
    "backward": list(itertools.product((1024, 2048, 4096), (4, 8), (1, 2, 3), (2048, 8192, 32768), (None,))),
}
Timer = Callable[[Callable[[], object]], float]


def time_on_gpu(run: Callable[[], object]) -> float:
    """Median milliseconds with a cold second-level cache."""
    return float(triton.testing.do_bench(run, return_mode="median"))


def workload(direction: str, nhwc: bool, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], object]:
    """One launch of bn -> relu with moments."""
    layout = torch.channels_last if nhwc else torch.contiguous_format
    x = torch.randn(shape, device="cuda", dtype=dtype).to(memory_format=layout)
    vector = torch.ones(shape[1], device="cuda")
    if direction == "forward":
        return lambda: launch.forward(x, vector, vector, vector, None, RELU, 0.0)
    dy = torch.randn_like(x)
    return lambda: launch.backward(dy, x, vector, vector, vector, None, vector, vector, RELU, 0.0, False)


def best_tiling(direction: str, nhwc: bool, timer: Timer) -> Tiling:
    """The candidate with the least geometric mean of the times."""
    key = (direction, "channels-last" if nhwc else "contiguous")
    runs = [workload(direction, nhwc, shape, dtype) for shape in SHAPES for dtype in DTYPES]
    kept = TILINGS[key]
    scores: dict[Tiling, float] = {}
    for candidate in itertools.starmap(Tiling, SEARCH[direction]):
        TILINGS[key] = candidate
        try:
            scores[candidate] = sum(math.log(timer(run)) for run in runs)
        except triton.runtime.errors.OutOfResources:
            continue
        finally:
            TILINGS[key] = kept
    return min(scores, key=lambda candidate: scores[candidate])


def rewritten(source: str, table: dict[tuple[str, str], Tiling], measured_on: str) -> str:
    """The text of `launch.py` with this table and this origin."""
    head, _, rest = source.partition("TILINGS = {\n")
    _, _, rest = rest.partition("\n}\n")
    notes, _, rest = rest.partition("Measured on:")
    _, _, tail = rest.partition('\n"""')
    rows = "".join(f"    {quoted(key)}: {tiling},\n" for key, tiling in table.items())
    return f'{head}TILINGS = {{\n    # (direction, layout)\n{rows}}}\n{notes}Measured on: {measured_on}.\n"""{tail}'


def quoted(key: tuple[str, str]) -> str:
    """A key as the formatter writes it."""
    return "({})".format(", ".join(f'"{part}"' for part in key))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the file instead of writing it")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune: no CUDA device to measure on", file=sys.stderr)
        return 2
    table = {
        (direction, layout): best_tiling(direction, layout == "channels-last", time_on_gpu)
        for direction, layout in TILINGS
    }
    path = Path(launch.__file__)
    card = torch.cuda.get_device_name(torch.cuda.current_device())
    origin = f"{card}, torch {torch.__version__}, triton {triton.__version__}"
    text = rewritten(path.read_text(), table, origin)
    if options.dry_run:
        print(text, end="")
    else:
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
