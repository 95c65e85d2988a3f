"""The scans of every change, in one process: `python tests/fake_cuda/in_ci.py nayer-bf16 planted`.

A JSON line for each: METHOD-bf16 runs a method on one card and METHOD-fp16 on the second of two, both on small
networks; METHOD-table on WRN-40-2 and WRN-16-2, as the launch table has them; `planted` says what is found of planted
mistakes, `evaluation` what of images that lie on a card.
"""

from __future__ import annotations

import guard

guard.load_guard()  # before torch, which the others import

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from evaluation import evaluated  # noqa: E402
from planted import caught  # noqa: E402
from scan import prepare, scan  # noqa: E402
from whole_runs import SMALL, Case  # noqa: E402

APART = {"planted": caught, "evaluation": evaluated}


def case_of(name: str) -> Case:
    """METHOD-bf16, METHOD-fp16 or METHOD-table."""
    method, _, kind = name.rpartition("-")
    if kind == "bf16":
        return Case(method=method, teacher=SMALL["teacher"], student=SMALL["student"])
    return Case(method=method, **(SMALL if kind == "fp16" else {}))


def main() -> None:
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:]:
            found = APART[name]() if name in APART else scan(case_of(name), Path(folder))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
