"""NAYER's synthesis as its release does it, in plain torch: hooks, a fresh Adam, one linear layer a group, no aliases.

Written from a description of the release (arXiv:2310.00258, Algorithm 1). What is random comes from outside: whoever
resets hands over the drawn values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from released import HookedStatistics, masked_adversary
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]


@dataclass
class Draws:
    """What was drawn, in order: states of the whole generator, of its noisy layers, and labels."""

    generators: deque[State] = field(default_factory=deque)
    noises: deque[State] = field(default_factory=deque)
    labels: deque[Tensor] = field(default_factory=deque)

    @property
    def used(self) -> bool:
        """Whether nothing is left."""
        return not (self.generators or self.noises or self.labels)


class ReleasedGenerator(nn.Module):
    """BatchNorm1d of the embedding, a linear layer for each group of K labels, a linear stem, convolutions, sigmoid."""

    def __init__(self, state: State, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        features = len(state["norm.weight"])
        self.norm = nn.BatchNorm1d(features)
        weights = state["noise.weight"]
        self.noise = nn.ModuleList(nn.Linear(features, weights.shape[2]) for _ in weights)
        self.stem = nn.Linear(weights.shape[2], len(state["decoder.stem.weight"]))
        self.channels = len(state["decoder.layers.norm0.weight"])
        convs = [state[f"decoder.layers.{name}.weight"].shape for name in ("conv1", "conv2", "to_rgb")]
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(self.channels),
            *self._block(convs[0]),
            *self._block(convs[1]),
            nn.Conv2d(convs[2][1], convs[2][0], 3, padding=1),
            nn.Sigmoid(),
        )
        self.double().load(state)

    @staticmethod
    def _block(shape: torch.Size) -> list[nn.Module]:
        conv = nn.Conv2d(shape[1], shape[0], 3, padding=1, bias=False)
        return [nn.Upsample(scale_factor=2), conv, nn.BatchNorm2d(shape[0]), nn.LeakyReLU(0.2)]

    def load(self, state: State) -> None:
        """Take over a state of `NoisyEmbeddingGenerator`."""
        places = {"norm0": 0, "conv1": 2, "norm1": 3, "conv2": 6, "norm2": 7, "to_rgb": 9}
        own = {f"norm.{name.removeprefix('norm.')}": value for name, value in state.items() if name.startswith("norm.")}
        own |= {name.removeprefix("decoder."): value for name, value in state.items() if "decoder.stem" in name}
        for name, place in places.items():
            prefix = f"decoder.layers.{name}."
            found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            own |= {f"blocks.{place}.{key}": value for key, value in found.items()}
        missing, unexpected = self.load_state_dict(own, strict=False)
        assert not unexpected
        assert all(name.startswith("noise.") for name in missing)
        self.load_noise({name: state[f"noise.{name}"] for name in ("weight", "bias")})

    @torch.no_grad()
    def load_noise(self, state: State) -> None:
        for layer, weight, bias in zip(self.noise, state["weight"], state["bias"], strict=True):
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias[0])

    def forward(self, embeddings: Tensor) -> Tensor:
        groups = self.norm(embeddings).split(self.num_classes)
        noisy = torch.cat([layer(group) for layer, group in zip(self.noise, groups, strict=True)])
        side = round((self.stem.out_features / self.channels) ** 0.5)
        return self.blocks(self.stem(noisy).view(len(embeddings), self.channels, side, side))


@dataclass
class ReleasedNayer:
    """`synthesize()` is one epoch's rounds; `epoch` counts its calls."""

    teacher: nn.Module
    student: nn.Module
    embeddings: Tensor
    draws: Draws
    normalize: Callable[[Tensor], Tensor]
    warmup: int
    warmup_rounds: int
    rounds: int
    steps: int
    life: int
    lr: float
    momentum: float
    epoch: int = 0

    def __post_init__(self) -> None:
        self.hooks = HookedStatistics(self.teacher, self.momentum)
        self.generator: ReleasedGenerator | None = None

    def synthesize(self) -> list[Tensor]:
        """The images that each round leaves."""
        self.student.eval()
        if self.epoch % self.life == 0 or (self.epoch - self.warmup) % self.life == 0:
            self.generator = ReleasedGenerator(self.draws.generators.popleft(), len(self.embeddings))
        count = self.warmup_rounds if self.epoch < self.warmup else self.rounds
        self.epoch += 1
        kept = []
        for _ in range(count):
            assert self.generator is not None
            self.generator.load_noise(self.draws.noises.popleft())
            kept.append(self._round(self.generator, self.draws.labels.popleft()))
            self.hooks.update()
            self.student.train()
        return kept

    def _round(self, generator: ReleasedGenerator, labels: Tensor) -> Tensor:
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        best, lowest = torch.empty(0), float("inf")
        for _ in range(self.steps):
            images = generator(self.embeddings[labels])
            self.hooks.inputs.clear()
            view = self.normalize(images)
            logits = self.teacher(view)
            loss = 10 * self.hooks.loss() + 0.5 * F.cross_entropy(logits, labels)
            if self.epoch > self.warmup:
                loss = loss + 1.33 * masked_adversary(self.student(view), logits)
            if loss.item() < lowest:
                best, lowest = images.detach().clone(), loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return best
