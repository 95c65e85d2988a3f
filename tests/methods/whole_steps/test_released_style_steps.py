"""The baseline of the races (bench/released_style) against our methods in float64: whole rounds and student steps.

It computes in another way; its numbers must be the same. Crops and flips are off and CMI's local view and draws are
fixed, so that nothing random is left but what a round starts from, which the baseline is given. The random part of the
baseline itself is looked at by `tests/benchmark/test_released_style.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from follow import Start, arena, batch_of, follow_round, follow_student, normalised, note_statistics, views
from rounds import Rounds
from torch import Tensor, nn
from toy_networks import INFO
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast import augment
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.methods.base import MethodConfig
from dfkd_fast.methods.cmi.instance_features import FeatureBank
from dfkd_fast.methods.cmi.method import Cmi, CmiConfig
from dfkd_fast.methods.fast import Fast, FastConfig
from dfkd_fast.methods.muse.method import MuseS, MuseSConfig
from dfkd_fast.methods.nayer import Nayer, NayerConfig
from dfkd_fast.methods.ssdkd import Ssdkd, SsdkdConfig
from dfkd_fast.pool.pool import PoolBatch

sys.path.append(str(Path(__file__).parents[3] / "bench"))

from released_style.recipe import recipe_of
from released_style.schedule import begins_anew, is_adversarial
from released_style.whole_run import BASELINES, scheduler_of

SMALL = {"epochs": 5, "warmup_epochs": 1, "synthesis_steps": 3, "generator_width": 8, "batch_size": 12}
SMALL |= {"crop_padding": 0, "flip": False, "synthesis_batch_size": 10}
NOISY, LATENT = SMALL | {"noise_features": 12}, SMALL | {"latent_dim": 8}
METHODS: dict[str, tuple[type[Any], MethodConfig]] = {
    "nayer": (Nayer, NayerConfig(**NOISY)),
    "muse-s": (MuseS, MuseSConfig(**NOISY, image_sizes=(12,), full_images=500)),
    "fast": (Fast, FastConfig(**LATENT)),
    "ssdkd": (Ssdkd, SsdkdConfig(**LATENT, buffer_size=25, start="fomaml")),
    "cmi": (Cmi, CmiConfig(**LATENT, head_features=5, bank_size=20, num_negatives=12)),
}
ROUNDS = ((0, 0), (1, 0), (1, 1))
"""warming up, with the adversary, and the second round of an epoch, in which NAYER's student trains"""
EPOCH = 2
"""that the student steps belong to"""
BOX = torch.tensor([[0.1, 0.2, 0.7, 0.6]])
"""of every local view"""


class Pair:
    """A method of ours and the baseline over twin networks, and the numbers of both."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.ours, self.theirs = name, Trace(), Trace()
        cls, config = METHODS[name]
        self.place, twin = arena(text="orthogonal"), arena()
        self.method = self.place.method(cls, config)
        self.trainer = self.place.trainer(self.method, capacity=25)
        train = TrainConfig(method=config, teacher="cnn", student="cnn")
        sizes = {
            "num_classes": INFO.num_classes,
            "full_size": INFO.image_size.short,
            "mean": INFO.mean,
            "std": INFO.std,
        }
        kinds = {"networks": (twin.teacher, twin.student), "embeddings": twin.setup.label_embeddings, "workers": 0}
        self.baseline: Any = BASELINES[name](recipe_of(train, **sizes), folder, **kinds)
        self.baseline.augment = normalised
        self.baseline.part = lambda images: normalised(augment.resized_crop(images, BOX.expand(len(images), 4)))
        if name == "muse-s":
            with torch.no_grad():  # near enough to the classes for both hinges to be open
                for value in self.method.embedding.side.parameters():
                    value *= 0.2
            self.baseline.map.load_state_dict(self.method.embedding.side.state_dict())

    def rounds(self) -> None:
        """Ours, and the baseline's from the same starts."""
        rounds = Rounds(self.method.scales[0] if self.name == "muse-s" else self.method, self.place.runtime)
        for where in ROUNDS if self.name == "nayer" else ROUNDS[:2]:
            start = follow_round(rounds, *where, self.ours, ("generator.", "head."))
            if self.name == "ssdkd":
                self.trainer.store(start.left)
                made = start.left.initial_priorities, start.left.labels
                self.ours |= {f"{where} {key}": value.double() for key, value in zip("pl", made, strict=True)}
            self.begin(where, start)
            for step in range(3):
                self.baseline.synthesis_step(adversarial=is_adversarial(self.baseline.recipe.config, where[0]))
                self.note(f"round {where[0]}.{where[1]} step {step}")
            self.baseline.end_round()
            self.theirs[f"round {where[0]}.{where[1]} images"] = self.baseline.best_images
            if self.name == "ssdkd":
                made = self.baseline.pool.deltas[-10:], self.baseline.pool.labels[-10:]
                self.theirs |= {
                    f"{where} {key}": torch.tensor(value, dtype=torch.float64)
                    for key, value in zip("pl", made, strict=True)
                }
            note_statistics(self.ours, f"{where} student", dict(self.place.student.named_buffers()))
            note_statistics(self.theirs, f"{where} student", dict(self.baseline.student.named_buffers()))

    def begin(self, where: tuple[int, int], start: Start) -> None:
        """A round of the baseline, begun as it begins one, and what it drew replaced by what ours drew."""
        baseline, made = self.baseline, part(start.state, "generator.")
        if self.name in ("fast", "ssdkd"):
            learned = part(start.state, "start.meta_parameters.")
            if where == (0, 0):
                load(baseline.generator, learned)
            for name, (value, _) in named(baseline.generator).items():  # it has moved by itself
                key = f"{where} start.{name}"
                self.ours[key], self.theirs[key] = learned[name], value.detach().clone()
        baseline.begin_round(later=where[1] > 0)
        baseline.labels = start.labels
        if self.name in ("nayer", "muse-s"):
            is_new = where == (0, 0) or (not where[1] and begins_anew(baseline.recipe.config, where[0], full_size=16))
            load(baseline.generator, made if is_new else part(made, "noise.", keep=True))
        else:
            baseline.latents.data.copy_(made["latents"])
        if self.name == "cmi":
            load(baseline.generator, made)
            if where == (0, 0):
                baseline.head.load_state_dict(part(start.state, "head."))

    def note(self, key: str) -> None:
        """Gradients and weights behind a step, by our names."""
        baseline = self.baseline
        found = {
            f"generator.{name}": pair for name, pair in named(getattr(baseline, "clone", baseline.generator)).items()
        }
        if hasattr(baseline, "latents"):
            found["generator.latents"] = baseline.latents, baseline.latents.grad
        if hasattr(baseline, "head"):
            found |= {f"head.{name}": (value, value.grad) for name, value in baseline.head.named_parameters()}
        self.take(key, found)

    def take(self, key: str, found: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Into the baseline's trace."""
        for name, (value, gradient) in found.items():
            self.theirs[f"{key} weight {name}"] = value.detach().clone()
            self.theirs[f"{key} gradient {name}"] = gradient.detach().clone()

    def student(self) -> None:
        """Two student steps, on batches that ours drew."""
        scheduler, config = scheduler_of(self.baseline), METHODS[self.name][1]
        self.baseline.optimizer.zero_grad()  # of what synthesis left there
        for _ in range(EPOCH - config.warmup_epochs):
            self.baseline.optimizer.step()
            scheduler.step()
        self.baseline.student.train()
        for step in range(2):
            batch = self.batch(step)
            follow_student(self.trainer, EPOCH, [batch], self.ours, first=step)
            self.their_student(step, batch)

    def batch(self, step: int) -> PoolBatch:
        """What the student learns from: SSD-KD's from its pool, by priority."""
        if self.name == "ssdkd":
            (drawn,) = next(iter(self.trainer.inputs(1)))[0].values()
            return drawn
        return batch_of(views(12, step))

    def their_student(self, step: int, batch: PoolBatch) -> None:
        """The baseline's step on it."""
        baseline, key = self.baseline, f"student {EPOCH} step {step}"
        if self.name == "ssdkd":
            weights = baseline.pool.weights(batch.indices)
            torch.testing.assert_close(weights.float(), batch.is_weights.float(), rtol=1e-5, atol=0)
            # ours are worked out in float32
            baseline.batches = iter([(batch.images, batch.labels, batch.indices)])
            with patch.object(baseline.pool, "weights", lambda places: batch.is_weights):
                baseline.student_step()
            leaves = (torch.tensor(baseline.pool.deltas).abs() + 1e-6) ** 0.6
            torch.testing.assert_close(
                next(iter(self.trainer.priorities.values())).leaves[: len(leaves)], leaves, rtol=1e-5, atol=0
            )
        else:
            baseline.batches = iter([(batch.images, batch.labels)])
            baseline.student_step()
        found = {name: (value, value.grad) for name, value in baseline.student.named_parameters()}
        if self.name == "muse-s":
            found |= {f"side.{name}": (value, value.grad) for name, value in baseline.map.named_parameters()}
        self.take(key, found)
        note_statistics(self.theirs, key, dict(baseline.student.named_buffers()))

    def compared(self) -> tuple[Trace, Trace]:
        """The numbers that both have: the baseline does not hand out its terms."""
        terms = ("ce", "bn", "adv", "cam", "aed", "contrastive", "kd", "ed")
        return {key: value for key, value in self.ours.items() if key.split()[-1] not in terms}, self.theirs


def part(state: Mapping[str, Tensor], prefix: str, *, keep: bool = False) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning unless it is kept."""
    return {name if keep else name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}


def named(generator: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights and gradients of the baseline's generator by our names and in our shapes; gradients may be missing."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    blocks = [layer for layer in generator.blocks if [*layer.parameters()]]
    layers = {"decoder.stem": generator.stem}
    layers |= {f"decoder.layers.{name}": layer for name, layer in zip(BLOCKS, blocks, strict=True)}
    if hasattr(generator.noise, "norm"):
        layers["norm"] = generator.noise.norm
        linears = [*generator.noise.layers]
        for name, turned in (("weight", lambda value: value.T), ("bias", lambda value: value[None])):
            values = [getattr(linear, name) for linear in linears]
            missing = any(value.grad is None for value in values)
            gradient = torch.empty(0) if missing else torch.stack([turned(value.grad) for value in values])
            found[f"noise.{name}"] = torch.stack([turned(value.detach()) for value in values]), gradient
    for name, layer in layers.items():
        found |= {f"{name}.{key}": (value, value.grad) for key, value in layer.named_parameters()}
    return found


BLOCKS = ("norm0", "conv1", "norm1", "conv2", "norm2", "to_rgb")


@torch.no_grad()
def load(generator: Any, state: Mapping[str, Tensor]) -> None:
    """Take our weights."""
    blocks = [layer for layer in generator.blocks if [*layer.parameters()]]
    layers: dict[str, nn.Module] = {"decoder.stem": generator.stem}
    layers |= {f"decoder.layers.{name}": layer for name, layer in zip(BLOCKS, blocks, strict=True)}
    layers["norm"] = generator.noise.norm if hasattr(generator.noise, "norm") else nn.Identity()
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer == "noise":
            for linear, own in zip(generator.noise.layers, value, strict=True):
                getattr(linear, kind).copy_(own.T if kind == "weight" else own[0])
        elif layer in layers:
            getattr(layers[layer], kind).copy_(value)


@pytest.fixture(autouse=True)
def fixed() -> Iterator[None]:
    """CMI's local views and draws."""

    def sample(bank: FeatureBank, count: int) -> tuple[Tensor, Tensor]:
        filled = min(int(bank.written), count)
        return bank.rows[:filled], torch.ones(filled, dtype=torch.bool)

    with ExitStack() as patched:
        patched.enter_context(patch.object(augment, "draw_boxes", lambda count, **_: BOX.expand(count, 4)))
        patched.enter_context(patch.object(FeatureBank, "sample", sample))
        patched.enter_context(patch("random.sample", lambda places, count: places[:count]))
        yield


def followed(name: str, folder: Path) -> Pair:
    pair = Pair(name, folder)
    pair.rounds()
    pair.student()
    return pair


@pytest.mark.parametrize("name", METHODS)
def test_the_baseline_computes_what_ours_does(name: str, tmp_path: Path) -> None:
    pair = followed(name, tmp_path)
    check_same(*pair.compared(), tolerance=1e-7 if name == "ssdkd" else 1e-9)  # whose class shares are float32
    more = {"muse-s": ("cam", "aed", "ed"), "cmi": ("contrastive",)}.get(name, ())
    check_at_work(pair.ours, "ce", "bn", "adv", "kd", *more)


@pytest.mark.parametrize(("name", "attribute"), [("nayer", "bn_weight"), ("ssdkd", "ce_weight"), ("cmi", "adv_weight")])
def test_another_weight_is_seen(name: str, attribute: str, tmp_path: Path) -> None:
    pair = Pair(name, tmp_path)
    object.__setattr__(pair.baseline.recipe, attribute, 1.01 * getattr(pair.baseline.recipe, attribute))
    pair.rounds()
    check_seen(*pair.compared())
