"""`--bn.scope global`: two processes over gloo train the student that one process does, on the same batches."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny, write_teacher

from dfkd_fast.catalog import METHODS
from dfkd_fast.config.sections import BnConfig, PoolConfig
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Supports
from dfkd_fast.parallel.global_batch import GlobalBatch
from dfkd_fast.pool.build import check_pool
from dfkd_fast.training.assemble import load_method
from dfkd_fast.training.records import run_record
from dfkd_fast.training.train import train

RANKS = 2
CLAIMED = [name for name in METHODS if load_method(name).supports.global_batch]
SETTINGS: dict[str, dict[str, Any]] = {
    "nayer": {"generator_life": 1, "jitter": True, "crop_scale": 0.5},
    "muse": {"image_sizes": (28, 32), "batch_shares": (1, 1)},
    "ssdkd": {"is_normalized": True},
    "deepinversion": {"adv_clamp": True, "tv_l2_weight": 1e-3, "l2_weight": 1e-4},
    "fast": {"flip": True, "student_mix": "both"},
}
"""what else of a batch is no mean over its images: hinges, norms, largest weights, partners of a mixture"""
STOPPED = ("ssdkd",)
"""stopped and taken up: a ring with priorities"""

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_global_batch import CLAIMED, STOPPED, run
from dfkd_fast.training.records import run_record
from dfkd_fast.device.runtime import make_runtime
run_record.matmul_rate = lambda runtime: 1.0
make_runtime(device="cpu")
for name in CLAIMED:
    run(name, Path(sys.argv[2]) / "two", stop=2 if name in STOPPED else None)
for name in STOPPED:
    run(name, Path(sys.argv[2]) / "two", resume=True)
run("fast", Path(sys.argv[2]) / "one-two", resume=True)
"""


def config(name: str, folder: Path) -> TrainConfig[Any]:
    """A few steps of every phase in float64, with batches that halve."""
    made = tiny(name, folder.parent / "teacher.safetensors", folder / name, bn=BnConfig(scope="global"))
    sizes = {"synthesis_batch_size": 24, "batch_size": 20}
    recipe = replace(made.method, **sizes, **SETTINGS.get(name, {}))
    return replace(made, method=recipe, precision="fp64")


def run(name: str, folder: Path, *, stop: int | None = None, resume: bool = False) -> None:
    train(replace(config(name, folder), stop_after_epoch=stop), resume=resume)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    write_teacher(folder / "teacher.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_record, "matmul_rate", lambda runtime: 1.0)  # measuring it takes as long as a run
        for name in CLAIMED:
            run(name, folder / "one")
        run("fast", folder / "one-two", stop=2)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    (folder / "script.py").write_text(SCRIPT)
    command = [*launch, str(folder / "script.py"), str(Path(__file__).parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", CLAIMED)
def test_two_processes_are_one(folder: Path, name: str) -> None:
    """The same student, to 1e-9 in float64, of as much work; one checkpoint, one pool."""
    one, two = (load_file(folder / where / name / "student.safetensors") for where in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], rtol=0, atol=1e-9) for key in one)
    records = [json.loads((folder / where / name / "run.json").read_text()) for where in ("one", "two")]
    assert [record["world_size"] for record in records] == [1, RANKS]
    counts = ("images_synthesized", "student_steps", "generator_steps", "distillation_flops")
    assert all(records[0][key] == pytest.approx(records[1][key]) for key in counts)
    assert not list((folder / "two" / name).rglob("rank-*"))


def test_goes_on_with_two_as_with_one(folder: Path) -> None:
    one, more = (load_file(folder / where / "fast" / "student.safetensors") for where in ("one", "one-two"))
    assert all(torch.allclose(one[key], more[key], rtol=0, atol=1e-9) for key in one)


def test_a_method_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_method("fast"), "supports", Supports())
    message = r"^--bn\.scope global: fast cannot train on one batch over all ranks; choose rank$"
    with pytest.raises(UserError, match=message):
        run("fast", tmp_path)


def test_a_pool_in_files_is_refused() -> None:
    """Before anything is written: one rank writes them, and the others' would change under their hands."""
    cpu, files = torch.device("cpu"), PoolConfig(storage="mmap")
    runtime = Runtime(device=cpu, precision="fp32", channels_last=False, world_size=2)
    check_pool(files, runtime)
    with pytest.raises(UserError, match=r"^--pool\.storage mmap: --bn\.scope global keeps the pool in each process's"):
        check_pool(files, replace(runtime, global_batch=GlobalBatch(0, 2)))
