"""Sets of synthetic images, from a config: made in a folder beside the target, which goes when the set is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dfkd_fast import __version__
from dfkd_fast.config.setting import settings_of
from dfkd_fast.config.sources import resolve
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.deploy.image_sets import check_target, write_set
from dfkd_fast.deploy.synthesis import Say, synthesize
from dfkd_fast.files.locks import lock_file
from dfkd_fast.files.write import drop_folder, make_folder
from dfkd_fast.training.interrupt import StopSignals

FORMAT = 1  # of the manifest


def work_folder(out: Path) -> Path:
    """Where images are kept until all are made: beside the target."""
    return out.with_name(f"{out.name.replace('%06d', 'shards')}.synth")


def synth(
    config: TrainConfig[Any], count: int, out: Path, *, licence: str, signals: StopSignals, say: Say
) -> dict[str, Any]:
    """Make `count` images of a teacher and write them as `out` says by its name; returns the manifest.

    A stopped call goes on where it was. Raises UserError for what cannot be made or written.
    """
    check_target(out)
    config = resolve(config)
    work = work_folder(out)
    make_folder(work)
    handle = lock_file(work / "lock", "--out", "is being written by another process; let it end")
    try:
        made = synthesize(config, count, work, pictures=out.suffix != ".npz", signals=signals, say=say)
        manifest = write_set(
            made.files,
            out,
            made.info.class_names or _numbers(made.info.num_classes),
            {
                "format": FORMAT,
                "program": f"dfkd-fast {__version__}",
                "images": count,
                "shape": list(made.info.shape),
                "licence": licence or None,
                "teacher": {
                    "name": made.info.name,
                    "weights": None if config.teacher_weights is None else config.teacher_weights.name,
                    "published": made.info.published or None,
                    "sha256_of_tensors": made.teacher,
                },
                "method": config.method_name,
                "seed": config.seed,
                "recipe": {key: value for key, value, _ in settings_of(config.method)},
                "teacher_names_them_as_meant": made.agreement,
            },
        )
        drop_folder(work)
    finally:
        os.close(handle)
        if work.exists() and not (work / "checkpoints").exists():  # nothing that could be gone on with
            drop_folder(work)
    return manifest


def _numbers(num_classes: int) -> tuple[str, ...]:
    """Names of classes that nobody has named: as `pool export` calls their folders."""
    return tuple(f"{number:05d}" for number in range(num_classes))
