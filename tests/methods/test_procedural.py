"""Procedural: what it draws and keeps, its walks over a boundary, its settings; whole steps stand beside others'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from rounds import Rounds
from torch import Tensor, nn
from toy_networks import INFO

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.procedural import Procedural, ProceduralConfig
from dfkd_fast.procedural.selection import vote_counts, vote_entropy
from dfkd_fast.rng import seed_phase

CONFIG = ProceduralConfig(
    epochs=4,
    warmup_rounds=2,
    rounds=1,
    synthesis_batch_size=21,
    boundary_pairs=5,
    boundary_step=0.05,
    candidates=3,
    randaugment_operations=1,
)
PLAIN = 11


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Procedural:
    return make_method(Procedural, CONFIG)


def votes_of(teacher: nn.Module, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).double().view(1, 3, 1, 1) for values in (INFO.mean, INFO.std))
    return teacher((images.double() - mean) / std).argmax(1)


def made(method: Procedural, runtime: Any, epoch: int = 0) -> Any:
    seed_phase(0, 0, epoch, "synthesis")
    return Rounds(method, runtime).round(epoch)


def test_labels_are_the_teachers_votes_and_are_counted(method: Procedural, teacher: nn.Module, runtime: Any) -> None:
    rounds, found = Rounds(method, runtime), []
    seed_phase(0, 0, 0, "synthesis")
    for index in range(2):
        batch = rounds.round(0, index)
        assert batch.images.shape == (21, 3, 16, 16)
        assert torch.equal(batch.labels, votes_of(teacher, batch.images))
        found.append(batch.labels.clone())
    assert torch.equal(method.counts, vote_counts(torch.cat(found), 4))
    assert not torch.equal(found[0], found[1])


def test_classes_are_as_equal_as_candidates_allow(
    make_method: Callable[..., Any], runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a teacher that sorts by brightness, in which most pictures are alike."""
    config = replace(CONFIG, synthesis_batch_size=60, boundary_pairs=0)
    entropies = []

    def sorts(images: Tensor) -> tuple[Tensor, Tensor]:
        classes = (images.mean((1, 2, 3)) * 4).long()
        return classes, classes

    for candidates in (1, 8):
        method = make_method(Procedural, replace(config, candidates=candidates))
        monkeypatch.setattr(method, "votes", sorts)
        batch = made(method, runtime)
        entropies.append(vote_entropy(vote_counts(batch.labels, 4)).item())
    assert entropies[0] < 0.9
    assert entropies[1] > 0.97


def test_walks_end_on_both_sides_of_a_boundary(
    make_method: Callable[..., Any], teacher: nn.Module, runtime: Any
) -> None:
    method = make_method(Procedural, replace(CONFIG, synthesis_steps=20))
    batch = made(method, runtime)
    before, after = batch.images[PLAIN:].split(5)
    crossed = method.crossed
    assert crossed.sum() >= 3
    assert (votes_of(teacher, after) == method.labels)[crossed].all()
    assert (votes_of(teacher, before) != method.labels)[crossed].all()
    steps = (after - before).abs().flatten(1).amax(1)
    assert (steps[crossed] > 0).all()
    assert (steps <= 3 * 0.05).all(), "neighbours on one walk"
    assert torch.equal(before[~crossed], after[~crossed])


def test_a_walk_that_begins_in_its_class_is_turned_to_the_second(method: Procedural) -> None:
    votes, seconds = torch.zeros(5, dtype=torch.int64), torch.full((5,), 2)
    method.counts.copy_(torch.tensor([0, 90, 90, 90]))  # class 0 is the rarest
    method.inner.run = lambda steps: torch.empty(0)  # type: ignore[method-assign, assignment, misc]
    method.walked(torch.rand(5, 3, 16, 16), votes, seconds)
    assert method.labels.tolist() == [2] * 5
    method.walked(torch.rand(5, 3, 16, 16), votes + 1, seconds)
    assert method.labels.tolist() == [0] * 5


def test_pictures_follow_the_seed_of_the_phase(make_method: Callable[..., Any], runtime: Any) -> None:
    first, again, other = (made(make_method(Procedural, CONFIG), runtime, epoch).images.clone() for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_grey_pictures(make_method: Callable[..., Any], runtime: Any) -> None:
    method = make_method(Procedural, replace(CONFIG, grey=True, boundary_pairs=0))
    images = made(method, runtime).images
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.std((1, 2, 3)).mean() > 0.05


def test_pairs_take_at_most_half_of_a_round(make_method: Callable[..., Any], runtime: Any) -> None:
    method = make_method(Procedural, replace(CONFIG, synthesis_batch_size=7, boundary_pairs=50))
    assert method.pairs == 3
    assert len(made(method, runtime).images) == 7


def test_schedule(method: Procedural) -> None:
    assert [method.rounds(epoch) for epoch in range(4)] == [2, 1, 1, 1]
    (plan,) = method.pools()
    assert plan.capacity == 5 * 21
    assert plan.labels_are_votes


def test_unknown_families_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--method\.families clouds: "):
        replace(CONFIG, families=("noise", "clouds")).check()
    with pytest.raises(UserError, match=r"^--method\.families: none given; choose from leaves, "):
        replace(CONFIG, families=()).check()
    config = load_config(default_config("procedural"), preset="digits", flags=["--families", "noise", "waves"])
    assert config.method.families == ("noise", "waves")


def test_no_images_at_all_are_refused() -> None:
    config = load_config(default_config("procedural"), preset="digits", flags=["--warmup-rounds", "0", "--rounds", "0"])
    with pytest.raises(UserError, match=r"^--method\.rounds 0: makes no images"):
        config.check()


def test_randaugment_needs_one_or_three_channels(setup: Setup) -> None:
    info = replace(INFO, in_chans=2, mean=(0.5, 0.5), std=(0.2, 0.2))
    with pytest.raises(UserError, match=r"^--method\.randaugment-operations 1: "):
        Procedural(CONFIG, setup._replace(info=info))


def test_golden(method: Procedural, runtime: Any) -> None:
    check_golden("procedural", trajectory(method, runtime, epochs=3, terms=["ce"]))
