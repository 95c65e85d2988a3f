"""The committed table of what steps launch and what each Triton kernel takes: bench/results/launches.json.

`tests/fake_cuda/scan.py` writes the steps, `triton_resources.py` the kernels; each keeps what the other has written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

KERNELS = "triton"


def read(file: Path) -> dict[str, Any]:
    """The table; empty where there is none yet."""
    return json.loads(file.read_text()) if file.exists() else {}


def update(file: Path, **parts: Any) -> None:
    """Write these parts into the table, a row a line; its others stay."""
    text = json.dumps(read(file) | parts, indent=1)
    rows = re.sub(r"\{\s([^{}]*)\}", lambda found: "{" + " ".join(found.group(1).split()) + "}", text)
    file.write_text(rows + "\n")


def kernel_rows(file: Path) -> list[dict[str, Any]]:
    """A row for each kernel and architecture: registers a thread, spilled and shared bytes, warps, who compiled it."""
    table = read(file)[KERNELS]
    made_by = {"torch": table["torch"], "triton": table["triton"]}
    return [
        {"kernel": kernel, "arch": arch, **amounts, **made_by}
        for kernel, by_arch in table["kernels"].items()
        for arch, amounts in by_arch.items()
    ]


def write_kernel_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as `kernel_rows` has them, all of one torch and one Triton, in the place of those in the table."""
    (made_by,) = {(row["torch"], row["triton"]) for row in rows}
    kernels: dict[str, dict[str, Any]] = {}
    for row in rows:
        amounts = {name: row[name] for name in ("registers", "spilled_bytes", "shared_bytes", "warps")}
        kernels.setdefault(row["kernel"], {})[row["arch"]] = amounts
    update(file, **{KERNELS: {"torch": made_by[0], "triton": made_by[1], "kernels": kernels}})
