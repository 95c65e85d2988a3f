"""HiDFD's whole steps in float64, from the paper (arXiv:2412.13525, Eqs. 1 and 8 to 14) and its release's description,
not from the code.

Two epochs of the GAN, whose networks step in turn, with the gate of Eq. 8 open and shut; two student steps. Once as the
paper has it, once as released, the student's step also as Eq. 14 is printed, and the class weights of L_reg also with
mean 1. The networks themselves, their
spectral norms with them, are the toolkit's: what stands here is what is done with what they say.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from follow import (
    Arena,
    Start,
    arena,
    batch_of,
    descend,
    follow_round,
    follow_student,
    normalised,
    note_statistics,
    state_of,
    views,
)
from plain import Adam, Sgd, State, batch_norm, cross_entropy, look
from rounds import Rounds
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from toy_networks import INFO
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast.methods.base import CollectedImages
from dfkd_fast.methods.hidfd.method import Hidfd, HidfdConfig

CONFIG = HidfdConfig(
    epochs=300,
    warmup_epochs=2,
    synthesis_batch_size=6,
    synthesis_steps=6,
    synthetic_images=20,
    latent_dim=8,
    generator_width=2,
    crop_scale=1.0,
)
RELEASED = replace(CONFIG, released=True, generator_lr=2e-4, discriminator_lr=2e-4)
POOLED = replace(CONFIG, alignment="pooled")
MEAN_ONE = replace(CONFIG, reg_mean_one=True)
"""class weights as the authors' regulariser scales them"""


class Given(NamedTuple):
    starts: list[Start]
    orders: list[Tensor]
    """of the collected images in an epoch"""


def scene(config: HidfdConfig) -> Arena:
    torch.manual_seed(9)
    collected = CollectedImages.noise(INFO, 9)
    return arena(student_width=10 if config.alignment == "pooled" else 8, collected=collected)


def ours(config: HidfdConfig) -> tuple[Trace, Given]:
    place, trace, given = scene(config), Trace(), Given([], [])
    method = place.method(Hidfd, config)
    rounds = Rounds(method, place.runtime)
    for engine in rounds.engines:
        engine.run_step = functools.partial(cleared, method, engine.run_step)
    for epoch in (0, 1):
        given.starts.append(follow_round(rounds, epoch, 0, trace))
        given.orders.append(method.gan.order.clone())
    follow_student(place.trainer(method), 162, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, given


def cleared(method: Hidfd, run_step: Callable[..., State], *variant: Any) -> State:
    """A step behind which only what it trains has gradients: it leaves those of the other network's step alone."""
    method.zero_grad()
    return run_step(*variant)


@dataclass
class Gan:
    """Both networks, their Adams, and the frequencies of Eq. 10."""

    generator: nn.Module
    discriminator: nn.Module
    g: State
    d: State
    teacher: State
    released: bool
    mean_one: bool
    counts: Tensor
    g_adam: Adam
    d_adam: Adam
    gates: list[bool]

    def seen(self, images: Tensor) -> Any:
        """By the teacher: normalised; as released in [-1, 1]."""
        return look(self.teacher, 2 * images - 1 if self.released else normalised(images))

    def make(self, latents: Tensor, labels: Tensor) -> Tensor:
        return functional_call(self.generator, self.g, (latents, labels))

    def judge(self, images: Tensor, *, train: bool) -> tuple[Tensor, Tensor, Tensor]:
        said = functional_call(self.discriminator.train(train), self.d, (images,))
        return said.scores, said.classes, said.features

    def discriminator_step(self, trace: Trace, key: str, real: Tensor, y: Tensor, drawn: deque[Tensor]) -> None:
        """-L_d, the classes, lambda_d (L_blend + L_trans), lambda_d = 0.1."""
        fake_y = drawn.popleft() if self.released else y
        with torch.no_grad():
            both = torch.cat([real, self.make(drawn.popleft(), fake_y)])
            of_real, of_fake = self.seen(both).pooled.chunk(2)
        scores, classes, features = self.judge(both, train=True)
        (r, f), (r_classes, f_classes) = scores.chunk(2), classes.chunk(2)
        real_seen, fake_seen = (features.detach() if self.released else features).chunk(2)
        if self.released:
            gan = (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean()
        else:
            gan = -r.sigmoid().log().mean() - (1 - f.sigmoid()).log().mean()  # Eq. 1
        chance = drawn.popleft()
        gate = self.released or bool(chance > 0.7)  # p > q
        self.gates.append(gate)
        terms = {
            "d_gan": gan,
            "d_adc": (cross_entropy(r_classes, 2 * y) + cross_entropy(f_classes, 2 * fake_y + 1)).mean(),
            "blend": gate * (apart(of_real, fake_seen) + apart(of_fake, real_seen)),  # Eq. 8
            "trans": apart(of_real, real_seen) + apart(of_fake, fake_seen),  # Eq. 9
        }
        loss = terms["d_gan"] + terms["d_adc"] + 0.1 * terms["blend"] + 0.1 * terms["trans"]  # Eq. 13
        if self.released:  # the features' head learns nothing
            for name in self.d:
                self.d[name].requires_grad_(self.d[name].requires_grad and "features" not in name)
        descend(trace, key, terms, loss, self.d, self.d_adam, 2e-4 if self.released else 4e-4, "gan.discriminator.")

    def generator_step(self, trace: Trace, key: str, drawn: deque[Tensor]) -> Tensor:
        """L_g, the classes, lambda_g L_reg, lambda_g = 0.1; then the frequencies move."""
        y = drawn.popleft()
        images = self.make(drawn.popleft(), y)
        scores, classes, _ = self.judge(images, train=False)
        logits = self.seen(images).logits
        p = logits.softmax(1).mean(0)
        counts = self.counts.clamp(min=0.1)
        weights = torch.ones(4).double() if self.released else counts.sum() / counts  # Eq. 11: 1 / (n_c / sum n)
        if self.mean_one:
            weights = weights * 4 / weights.sum()
        terms = {
            "g_gan": -scores.mean() if self.released else (1 - scores.sigmoid()).log().mean(),
            "g_adc": (cross_entropy(classes, 2 * y) - cross_entropy(classes, 2 * y + 1)).mean(),
            "reg": (weights * p * p.log()).sum(),  # Eq. 12
        }
        loss = terms["g_gan"] + terms["g_adc"] + 0.1 * terms["reg"]
        self.counts = 0.5 * self.counts + 0.5 * logits.argmax(1).bincount(minlength=4)  # Eq. 10: gamma = 0.5
        descend(trace, key, terms, loss, self.g, self.g_adam, 2e-4 if self.released else 1e-4, "gan.generator.")
        return images.detach()


def apart(first: Tensor, second: Tensor) -> Tensor:
    """Mean L2 distance of rows."""
    return (first - second).square().sum(1).sqrt().mean()


def published(config: HidfdConfig, given: Given) -> tuple[Trace, Gan]:
    """The same by hand."""
    place, trace = scene(config), Trace()
    method, state = place.method(Hidfd, config), given.starts[0].state
    g, d = (
        {name.removeprefix(f"gan.{part}."): value for name, value in state.items() if name.startswith(f"gan.{part}.")}
        for part in ("generator", "discriminator")
    )
    adams = Adam((0.0, 0.999)), Adam((0.0, 0.999))
    networks = method.gan.generator, method.gan.discriminator, g, d, state_of(place.teacher)
    gan = Gan(*networks, config.released, config.reg_mean_one, torch.full((4,), 6 / 4).double(), *adams, [])
    pixels = place.setup.collected.pixels.permute(0, 3, 1, 2).double() / 255
    for epoch, (start, order) in enumerate(zip(given.starts, given.orders, strict=True)):
        drawn = deque(start.drawn)
        for step in range(0, 6, 2):
            slots = order.repeat(9)[3 * step :][:6]  # in turn, over and over
            labels = place.setup.collected.labels[slots]
            gan.discriminator_step(trace, f"round {epoch}.0 step {step}", pixels[slots], labels, drawn)
            images = gan.generator_step(trace, f"round {epoch}.0 step {step + 1}", drawn)
        trace[f"round {epoch}.0 images"] = images
    student_steps(trace, state_of(place.student), gan.teacher, state_of(method.sharing))
    return trace, gan


def student_steps(trace: Trace, student: State, teacher: State, side: State) -> None:
    """L_align; the student has no classifier of its own. A tenth of the rate from distilled epoch 150 on."""
    learned = student | {f"side.{name}": value for name, value in side.items()}
    for name in ("fc.weight", "fc.bias"):
        learned[name].requires_grad_(False)
    optimizer = Sgd(0.9, 5e-4)
    for step in range(2):
        key, view = f"student 162 step {step}", views(12, step)
        own, other = look(learned, view, train=True), look(teacher, view)
        if not side:
            loss = apart(own.pooled, other.pooled.detach())  # Eq. 14
        else:  # SimKD's projector
            x = own.maps[2]
            for place, pad in ((0, 0), (3, 1), (6, 0)):
                name = "side.projector.layers"
                x = F.conv2d(x, learned[f"{name}.{place}.weight"], padding=pad)
                x = batch_norm(learned, f"{name}.{place + 1}", x, train=True).clamp(min=0)
            loss = (x - other.maps[2].detach()).square().mean()
        descend(trace, key, {"align": loss}, loss, learned, optimizer, 0.005)
        note_statistics(trace, key, {name: value for name, value in learned.items() if name.startswith("bn")})
        sides = {name.removeprefix("side."): value for name, value in learned.items() if name.startswith("side.")}
        note_statistics(trace, f"{key} side", sides)


CASES = {"paper": CONFIG, "released": RELEASED, "pooled": POOLED, "mean-one": MEAN_ONE}


@functools.cache
def statement(name: str) -> tuple[Trace, Trace, Gan]:
    found, given = ours(CASES[name])
    return found, *published(CASES[name], given)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_published_ones(name: str) -> None:
    found, expected, gan = statement(name)
    check_at_work(expected, "d_gan", "d_adc", "trans", "g_gan", "g_adc", "reg", "align")
    assert set(gan.gates) == {True, name == "released"}
    assert gan.counts.std() > 0.1
    check_same(found, expected)


CHANGES: list[dict[str, Any]] = [
    {"d_gan_weight": 1.01},
    {"d_adc_weight": 1.01},
    {"blend_weight": 0.101},
    {"trans_weight": 0.101},
    {"g_gan_weight": 1.01},
    {"g_adc_weight": 1.01},
    {"reg_weight": 0.101},
    {"student_lr_steps": (170,)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[0], statement("paper")[1])
