"""Synthetic images in Python: of a teacher, without a student."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.api.settings import flags_of, method_name, spec_of
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.deploy.synth import synth
from dfkd_fast.errors import UserError
from dfkd_fast.files.arrays import NpzFile
from dfkd_fast.messages.terminal import show
from dfkd_fast.methods.base import Method
from dfkd_fast.training.interrupt import Interrupted, stop_signals


@dataclass(frozen=True)
class SyntheticImages:
    """Images that were made in memory."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1]"""
    labels: Tensor
    """(N,) int64: the class that each was meant to be"""
    manifest: dict[str, Any]
    """how they were made: recipe, seed, teacher, class names, share that the teacher names as meant"""


def synthesize(
    teacher: nn.Module | str,
    n: int,
    *,
    method: str | type[Method] = "deepinversion",
    preset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    out: str | Path | None = None,
    licence: str = "",
    **recipe: Any,
) -> SyntheticImages | dict[str, Any]:
    """Make `n` images of a teacher's classes without its data and without a student: `dfkd-fast synth` as a function.

    teacher, mean, std, image_size, num_classes, recipe: as `distill` takes them; seed=0 is one of the recipe's.
    method: deepinversion, fast, nayer, cmi, or one that supports it (`Supports.without_student`).
    out: a folder, NAME.tar, NAME-%06d.tar or NAME.npz, as the command line takes it: then the images are written there
        and its manifest is returned; a stopped call goes on. Without it they are returned as tensors.

    Raises UserError for every mistake, and KeyboardInterrupt when it is stopped.
    """
    if n < 1:
        raise UserError(f"n {n}: choose 1 or more")
    given: dict[str, Any] = {"teacher": spec_of(teacher), "train_teacher": False, "mean": mean, "std": std}
    given |= {"image_size": image_size, "num_classes": num_classes} | recipe
    config = load_config(default_config(method_name(method)), preset=preset, flags=[*flags_of(given)])
    try:
        with stop_signals() as signals, tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
            target = Path(folder) / "images.npz" if out is None else Path(out)
            manifest = synth(config, n, target, licence=licence, signals=signals, say=show)
            if out is not None:
                return manifest
            file = NpzFile(target, f"synthesize {target}")
            pixels, labels = (torch.from_numpy(file.next_rows(name, n)) for name in ("images", "labels"))
    except Interrupted as stop:
        raise KeyboardInterrupt(f"stopped by {stop}") from None
    return SyntheticImages(pixels.permute(0, 3, 1, 2).float() / 255, labels, manifest)
