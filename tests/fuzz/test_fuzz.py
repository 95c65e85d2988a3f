"""Hostile inputs of every kind: exit status 0 or 2, at most eight lines, no traceback, no hang, bounded memory, no
program started, and nothing written outside the folder that was named.

An input that fails is named by kind and seed: `hostile.make(kind, seed, folder)` writes it again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hostile import CLASSES, KINDS, make, png
from sandbox import listing, run

from dfkd_fast.cli.main import main
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.models.small import cnn
from dfkd_fast.training.checkpoints.checkpoint import save_network

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits a child's memory: Linux")

IN_CI = {kind: 7 if kind == "config" else 19 for kind in KINDS}
"""inputs of each kind, 102 together; to parse a config and to find its fault takes the longest"""
NIGHTLY = {kind: 10 * count for kind, count in IN_CI.items()}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What every input finds beside it: a student, good images, and programs that nobody may start. Commands have run
    once, so that children inherit what they import.
    """
    import random

    folder = tmp_path_factory.mktemp("fuzz") / "above" / "ground"  # `listing` sees what is written above, too
    folder.mkdir(parents=True)
    info = ModelInfo(name="cnn", num_classes=3, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    save_network(folder / "student.safetensors", cnn(3), info)
    for split in ("train", "test"):
        for name in CLASSES:
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(2):
                (folder / "images" / split / name / f"{index}.png").write_bytes(png(random.Random(index)))
    (folder / "programs").mkdir()
    for name in ("gs", "git", "sh", "touch"):
        program = folder / "programs" / name
        program.write_text(f"#!/bin/sh\n: > {folder}/ran\n")
        program.chmod(0o755)
    good = (str(folder / "images"), str(folder / "out"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of the parent's
    assert main(["eval", str(folder / "student.safetensors"), "--data", good[0], "--device", "cpu"]) == 0
    assert main(["pool", "import", f"{good[0]}/test", good[1]]) == 0
    assert main(["teacher", "info", str(folder / "student.safetensors")]) == 0
    lost = ["--teacher-weights", "missing.pth", "--no-train-teacher", "--device", "cpu"]
    assert main(["train", "nayer", "--preset", "digits", "--run-dir", good[1], *lost]) == 2
    shutil.rmtree(folder / "out")
    yield folder
    torch.set_num_threads(threads)


def fuzz(kind: str, seeds: range, ground: Path) -> list[int]:
    """Hand every input to its command; returns the exit statuses."""
    wrong, statuses = [], []
    for seed in seeds:
        for name in ("in", "out"):  # of a seed that could not be made
            shutil.rmtree(ground / name, ignore_errors=True)
        arguments = make(kind, seed, ground)
        before = listing(ground)
        outcome = run(arguments, ground)
        faults = outcome.faults()
        after = listing(ground)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        faults += [f"touched {name!r}" for name in changed]
        if faults:
            wrong.append(f"{kind} {seed}: {', '.join(faults)}: {arguments[:4]}\n{outcome.output[-1500:]}")
        statuses.append(outcome.status)
        for name in ("in", "out"):
            shutil.rmtree(ground / name, ignore_errors=True)
        for name in set(after) - set(before):
            (ground / name).unlink(missing_ok=True) if not (ground / name).is_dir() else shutil.rmtree(ground / name)
    assert not wrong, f"{len(wrong)} of {len(seeds)} inputs\n" + "\n".join(wrong)
    return statuses


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_inputs_end_in_a_line(kind: str, ground: Path) -> None:
    statuses = fuzz(kind, range(IN_CI[kind]), ground)
    assert 2 in statuses, "no input was bad"
    assert kind == "config" or 0 in statuses, "no input was good: they all fail at the door"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_of_them(kind: str, ground: Path) -> None:
    fuzz(kind, range(IN_CI[kind], IN_CI[kind] + NIGHTLY[kind]), ground)
