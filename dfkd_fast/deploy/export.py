"""Export of a saved network: written to a place of its own, read back, compared, and only then put where it belongs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dfkd_fast import __version__
from dfkd_fast.deploy.check import Comparison, Images, compare
from dfkd_fast.deploy.formats import FORMATS, INPUT, OUTPUT, write
from dfkd_fast.errors import UserError, one_of, unknown
from dfkd_fast.files.digests import of_file
from dfkd_fast.files.write import all_or_nothing
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.normalized import NormalizedNetwork
from dfkd_fast.training.saved import SavedNetwork

FORMAT = 1  # of the JSON file
TOLERANCE = 1e-4
"""largest difference of two logits that is taken for rounding, as a share of the largest logit"""
OPSET = 18


class Exported(NamedTuple):
    """A network as it was exported."""

    file: Path
    about: dict[str, Any]
    """what the JSON file beside it says"""
    how: str
    """how it was made, in words"""
    checks: tuple[Comparison, ...]


def export(
    saved: SavedNetwork,
    to: str,
    out: Path,
    images: tuple[Images, ...],
    *,
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a network in the format `to` as `out`, and `<out>.json` beside it; both appear when every check has passed.

    Raises UserError for another ending than the format's, a file that is there already, a network that has no such
    form, and one whose exported form answers otherwise on `images`.
    """
    check_target(to, out)
    network = NormalizedNetwork(copy.deepcopy(saved.model).cpu().float(), saved.info).eval().requires_grad_(False)
    about = describe(saved.info, to, opset)
    with all_or_nothing(out, "--out") as made:
        how, exported = write(to, network, made, about, opset)
        what = f"--to {to}: the exported file"
        checks = tuple(compare(network, exported, shown, tolerance=tolerance, what=what) for shown in images)
        about |= {
            "origin": saved.origin,
            "file": out.name,
            "bytes": made.stat().st_size,
            "sha256": of_file(made),
            "checks": [check._asdict() for check in checks],
            "tolerance": tolerance,
        }
        made.with_name(f"{made.name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Exported(out, about, how, checks)


def check_target(to: str, out: Path) -> None:
    """Raise UserError for a format that is none, and a file that cannot be written."""
    if to not in FORMATS:
        raise unknown("--to", to, FORMATS)
    if out.suffix != FORMATS[to].ending:
        raise UserError(f"--out {out}: choose a name that ends in {FORMATS[to].ending}, as --to {to} writes")
    for file in (out, out.with_name(f"{out.name}.json")):
        if file.exists():
            raise UserError(f"--out {file}: is there already; choose another name")


def describe(info: ModelInfo, to: str, opset: int) -> dict[str, Any]:
    """What a program that runs the exported network must know, as JSON."""
    channels = {1: "grey", 3: "RGB"}.get(info.in_chans, f"{info.in_chans} channels")
    header = info.header()
    return {
        "format": FORMAT,
        "program": f"dfkd-fast {__version__}",
        "torch": torch.__version__,
        "network": info.name,
        "to": to,
        "opset": opset if to == "onnx" else None,
        "input": {
            "name": INPUT,
            "shape": ["batch", *info.shape],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "channels": channels,
            "resized_with": info.interpolation,
        },
        "normalisation": {"mean": header["mean"], "std": header["std"], "in_the_graph": to != "safetensors"},
        "output": {"name": OUTPUT, "shape": ["batch", info.num_classes]},
        "class_names": list(info.class_names),
    }


def default_target(target: Path, to: str) -> Path:
    """Where a network is exported to without `--out`: the run's folder `export`, or beside the file."""
    if to not in FORMATS:
        raise UserError(f"--to {to}: choose {one_of(FORMATS)}")
    ending = FORMATS[to].ending
    return target / "export" / f"student{ending}" if target.is_dir() else target.with_suffix(ending)
