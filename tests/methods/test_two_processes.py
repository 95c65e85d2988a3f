"""Every method on two processes over gloo, as torchrun starts them: one student, two halves of everything else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny, write_teacher
from torch import Tensor

from dfkd_fast.catalog import FACTS, METHODS
from dfkd_fast.config.record import write_config
from dfkd_fast.config.sources import default_config, load_run
from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk.manifest import load_manifest
from dfkd_fast.training.checkpoints.state_tensors import part_tensors
from dfkd_fast.training.ranks import share_of_rank
from dfkd_fast.training.train import train

RANKS = 2
STEPWISE = [name for name in METHODS if FACTS[name].loop == "stepwise"]
PIECES = [name for name in METHODS if name not in STEPWISE[1:]]
"""what is also run in two pieces: of the stepwise methods, which are one loop and one kind of state, the first"""
EVEN = {"synthesis_batch_size": 24, "batch_size": 20}
ELASTIC = ("fast", "muse", "ssdkd", "deepinversion", "cmi")
"""a learned start, several pools, a ring with priorities, images as parameters, a bank"""

# One pair of processes makes all runs, as their start takes longer than these. Each run also in two pieces.
EVERY_RUN = f"""
import sys
import torch
from dfkd_fast.cli.main import main
from dfkd_fast.device.runtime import make_runtime
runtime = make_runtime(device="cpu")
values = [torch.full((2, 2), float(runtime.rank)), torch.tensor(3.0)]
runtime.average(values)
assert [value.mean().item() for value in values] == [0.5, 3.0]
for name in {list(METHODS)!r}:
    base = sys.argv[1] + "/" + name
    assert main(["train", name, "--config", base + ".toml", "--run-dir", base]) == 0
    if name in {PIECES!r}:
        pieces = ["--run-dir", base + "-pieces"]
        assert main(["train", name, "--config", base + ".toml", *pieces, "--stop-after-epoch", "2"]) == 0
        assert main(["train", "--resume", base + "-pieces"]) == 0
for name in {ELASTIC!r}:
    base = sys.argv[1] + "/" + name
    pieces = ["--run-dir", base + "-fewer", "--stop-after-epoch", "2"]
    assert main(["train", name, "--config", base + ".toml", *pieces]) == 0
    assert main(["train", "--resume", base + "-more"]) == 0
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    teacher = write_teacher(folder / "teacher.safetensors")
    for name in METHODS:
        config = tiny(name, teacher, folder / name)
        config = replace(config, method=replace(config.method, **EVEN))
        write_config(config, folder / f"{name}.toml")
        if name in ELASTIC:
            train(replace(config, run_dir=folder / f"{name}-more", stop_after_epoch=2))
    script = folder / "script.py"
    script.write_text(EVERY_RUN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    done = subprocess.run([*launch, str(script), str(folder)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def saved_student(run: Path) -> dict[str, Tensor]:
    """The student in a run's file, also where the deployed network is built around it."""
    tensors = load_file(run / "student.safetensors")
    inner = {key.removeprefix("body.model."): value for key, value in tensors.items() if key.startswith("body.model.")}
    return inner or tensors


def students(run: Path, part: str = "student") -> list[dict[str, Tensor]]:
    """Each rank's student, or another part, in its last checkpoint."""
    files = [max((run / "checkpoints" / f"rank-{rank}-of-{RANKS}").glob("0*")) for rank in range(RANKS)]
    return [part_tensors(part, load_file(file / "state.safetensors")) for file in files]


@pytest.mark.parametrize("name", METHODS)
def test_ranks_have_one_student(runs: Path, name: str) -> None:
    """Bit for bit the same on both ranks and in the file; not the one that a single process trains."""
    first, second = students(runs / name)
    saved = saved_student(runs / name)
    assert first.keys() == second.keys() == saved.keys()
    assert all(torch.equal(first[key], second[key]) and torch.equal(first[key], saved[key]) for key in first)
    assert all(value.isfinite().all() for value in first.values())
    config = tiny(name, runs / "teacher.safetensors", runs / f"{name}-alone")
    alone = train(replace(config, method=replace(config.method, **EVEN)))
    other = saved_student(alone)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    records = [json.loads((run / "run.json").read_text()) for run in (runs / name, alone)]
    assert [record["world_size"] for record in records] == [RANKS, 1]
    for key in ("images_synthesized", "student_steps", "generator_steps"):
        assert records[0][key] == records[1][key], "the same recipe, shared out"


@pytest.mark.parametrize("name", STEPWISE)
def test_ranks_have_one_generator_where_there_is_no_pool(runs: Path, name: str) -> None:
    """It learns from all ranks' images, and each rank draws its own: not what a single process comes to."""
    first, second = students(runs / name, part="method")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not (runs / name / "pool").exists()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in STEPWISE])
def test_each_rank_makes_images_of_its_own(runs: Path, name: str) -> None:
    shards = sorted((runs / name / "pool").rglob(f"rank-*-of-{RANKS}"))
    assert len(shards) % RANKS == 0
    for first, second in zip(shards[::2], shards[1::2], strict=True):
        counts = [load_manifest(shard).count for shard in (first, second)]
        assert counts[0] == counts[1] > 0
        bytes_of = [b"".join(file.read_bytes() for file in sorted(shard.glob("*.bin"))) for shard in (first, second)]
        assert bytes_of[0] != bytes_of[1]


@pytest.mark.parametrize("name", PIECES)
def test_resumes_bit_for_bit(runs: Path, name: str) -> None:
    whole, pieces = (load_file(runs / f"{name}{kind}" / "student.safetensors") for kind in ("", "-pieces"))
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)


@pytest.mark.parametrize("name", ELASTIC)
@pytest.mark.parametrize(("kind", "before", "after"), [("fewer", RANKS, 1), ("more", 1, RANKS)])
def test_resumes_with_another_number_of_processes(
    runs: Path, name: str, kind: str, before: int, after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so, makes what is left of the recipe, keeps every image, and leaves nothing of the others behind."""
    run = runs / f"{name}-{kind}"
    if after == 1:
        train(replace(load_run(run), stop_after_epoch=None), resume=True)
        assert f"pool: written by {before} ranks, shared out anew among {after}" in capsys.readouterr().out
    whole, resumed = (json.loads((folder / "run.json").read_text()) for folder in (runs / name, run))
    assert resumed["world_size"] == after
    for key in ("images_synthesized", "student_steps", "generator_steps"):
        assert resumed[key] == whole[key]
    assert all(value.isfinite().all() for value in load_file(run / "student.safetensors").values())
    assert images_in(run) == images_in(runs / name)
    assert not [path for path in run.rglob("rank-*") if not path.name.endswith(f"-of-{after}")]
    assert bool([*(run / "checkpoints").glob("0*")]) == (after == 1)


def images_in(run: Path) -> int:
    """How many images the run's pools have taken, of all ranks and sizes."""
    return sum(load_manifest(file.parent).count for file in (run / "pool").rglob("manifest.json"))


def test_a_batch_that_cannot_be_shared_out() -> None:
    recipe = default_config("nayer").method
    assert share_of_rank(recipe, 2).synthesis_batch_size == recipe.synthesis_batch_size // 2
    with pytest.raises(UserError, match=r"^--method\.batch-size 512: choose a multiple of 3, the number of processes$"):
        share_of_rank(replace(recipe, synthesis_batch_size=300), 3)
