"""`--pool.prior procedural:N`: what a pool begins with, in which methods; resuming; what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import SHAPE, go_on, same, tiny, write_teacher

from dfkd_fast.catalog import FACTS, METHODS
from dfkd_fast.cli.main import main
from dfkd_fast.config.combinations import prior_count
from dfkd_fast.config.record import config_hash
from dfkd_fast.config.sources import default_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.training.assemble import load_method, make_method, make_student
from dfkd_fast.training.pools import make_pools
from dfkd_fast.training.prior import Prior, plans_with_prior
from dfkd_fast.training.real_images.collected import load_collected, rank_part
from dfkd_fast.training.train import train

PICTURES = 20
WITH_POOL = [name for name in METHODS if FACTS[name].loop == "alternating" and name != "spaceshipnet"]


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "cnn.safetensors")


def with_prior(name: str, teacher: Path, folder: Path, prior: str = f"procedural:{PICTURES}") -> TrainConfig[Any]:
    config = tiny(name, teacher, folder)
    return replace(config, pool=replace(config.pool, prior=prior))


def assembled(config: TrainConfig[Any]) -> tuple[Any, FrozenNet, Any]:
    model, info = load_model(config.teacher, **SHAPE, weights=config.teacher_weights)
    runtime = make_runtime(device="cpu", precision="fp32")
    teacher, cls = FrozenNet(model, info, runtime), load_method(config.method_name)
    real = rank_part(load_collected(config, cls, info), info, runtime)
    student = make_student(config, info, runtime)
    return make_method(config, cls, teacher, student, runtime, real), teacher, runtime


def images_of(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What is in a run's pool, in its order: pixels and labels."""
    files = PoolFiles(run / "pool")
    parts = [fields for _, fields in files.read(0, files.manifest.count)]
    return torch.cat([part["images"] for part in parts]), torch.cat([part["labels"] for part in parts])


@pytest.mark.parametrize("name", WITH_POOL)
def test_every_pool_has_room_for_them(name: str, teacher_file: Path, tmp_path: Path) -> None:
    config = with_prior(name, teacher_file, tmp_path / "run")
    method, teacher, runtime = assembled(config)
    pools, _ = make_pools(config.pool, tmp_path / "pool", method=method, runtime=runtime)
    try:
        room = {plan.image_size: plan.capacity for plan in method.pools()}
        assert sum(pool.capacity for pool in pools.pools.values()) == sum(room.values()) + PICTURES
        made: dict[tuple[int, int], int] = {}
        for batch in Prior(config.pool, method, teacher, runtime).batches():
            size = tuple(batch.images.shape[-2:])
            made[size] = made.get(size, 0) + len(batch.images)
            assert 0 <= batch.images.min() < batch.images.max() <= 1
            assert batch.initial_priorities is not None
            assert torch.equal(batch.initial_priorities, torch.ones(len(batch.images)))
        assert sum(made.values()) == PICTURES
        for size, pool in pools.pools.items():
            assert pool.capacity == room[size] + made.get(size, 0)
    finally:
        pools.close()


@pytest.mark.parametrize("name", ["nayer", "ssdkd", "muse", "kd"])
def test_a_run_with_them_resumes_bit_for_bit(name: str, teacher_file: Path, tmp_path: Path) -> None:
    """An endless pool, a ring with priorities, several sizes, a pool that is filled once."""
    whole = train(with_prior(name, teacher_file, tmp_path / "whole"))
    pieces = with_prior(name, teacher_file, tmp_path / "pieces")
    train(replace(pieces, stop_after_epoch=2))
    go_on(tmp_path / "pieces")
    assert same(tmp_path / "pieces", whole)
    for file in sorted((whole / "pool").rglob("*.bin")):
        assert file.read_bytes() == (tmp_path / "pieces" / file.relative_to(whole)).read_bytes()
    without = train(tiny(name, teacher_file, tmp_path / "without"))
    assert not same(without, whole)


def test_the_pool_begins_with_them(teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(with_prior("nayer", teacher_file, tmp_path / "run"))
    assert re.search(
        rf"pool: begins with {PICTURES} procedural pictures; entropy of the teacher's votes / ln K [01]\.\d+",
        capsys.readouterr().out,
    )
    pixels, labels = images_of(run)
    plain, _ = images_of(train(tiny("nayer", teacher_file, tmp_path / "plain")))
    assert len(pixels) == len(plain) + PICTURES
    assert torch.equal(pixels[PICTURES : PICTURES + 23], plain[:23]), "the method's first round is what it was"
    model, info = load_model("cnn", **SHAPE, weights=teacher_file)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
    seen = model.eval()((pixels[:PICTURES].permute(0, 3, 1, 2) / 255 - mean) / std)
    votes = seen.argmax(1)
    assert (votes == labels[:PICTURES]).sum() >= PICTURES - 1  # bytes may change a vote
    other = replace(with_prior("nayer", teacher_file, tmp_path / "other"), seed=1, stop_after_epoch=1)
    assert not torch.equal(images_of(train(other))[0][:PICTURES], pixels[:PICTURES])


def test_cached_answers_are_kept_of_them(teacher_file: Path, tmp_path: Path) -> None:
    config = replace(with_prior("procedural", teacher_file, tmp_path / "run"), cache_teacher_logits=2)
    run = train(config)
    files = PoolFiles(run / "pool")
    (answers,) = (fields["teacher_logits"] for _, fields in files.read(0, PICTURES))
    assert answers.shape == (PICTURES, 2, 10)
    assert answers.isfinite().all()
    assert load_file(run / "student.safetensors")


def test_off_it_leaves_the_hash_alone() -> None:
    config = default_config("nayer")
    on = replace(config, pool=replace(config.pool, prior="procedural:5"))
    assert config.pool.prior == ""
    assert config_hash(on) != config_hash(config)


@pytest.mark.parametrize("prior", ["procedural", "procedural:", "procedural:0", "procedural:x", "noise:5", "5"])
def test_what_names_no_pictures_is_refused(prior: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=rf"^--pool\.prior {prior}: choose procedural:N, for N pictures, 1 or more$"):
        prior_count(prior)
    assert main(["train", "nayer", "--preset", "digits", "--pool.prior", prior]) == 2
    assert (
        capsys.readouterr().err == f"dfkd-fast: --pool.prior {prior}: choose procedural:N, for N pictures, 1 or more\n"
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dafl", "this method has no pool; leave it out"),
        ("spaceshipnet", "this method's pool keeps maps of its generator, which pictures lack; leave it out"),
    ],
)
def test_methods_without_such_a_pool_refuse(name: str, why: str, teacher_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--pool\.prior procedural:{PICTURES}: {why}$"):
        train(with_prior(name, teacher_file, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_processes_share_them_evenly(teacher_file: Path, tmp_path: Path) -> None:
    config = with_prior("nayer", teacher_file, tmp_path / "run", "procedural:21")
    method, _, _ = assembled(config)
    with pytest.raises(UserError, match=r"^--pool\.prior procedural:21: choose a multiple of 2, the number of proc"):
        plans_with_prior(config.pool, method, 2)
    (plan,), (own,) = plans_with_prior(config.pool, method, 3), method.pools()
    assert plan.capacity == own.capacity + 7
