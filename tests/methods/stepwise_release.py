"""A round of the released code of DAFL, ZSKT and DFQ, in plain torch: two optimisers, BN hooks, no pool."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from released import HookedStatistics
from rounds import Rounds
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.stepwise import StepwiseConfig, StepwiseMethod
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.training.student import FreshTrainer

SMALL: dict[str, Any] = {
    "epochs": 5,
    "warmup_epochs": 1,
    "synthesis_batch_size": 10,
    "batch_size": 9,
    "synthesis_steps": 4,
    "student_steps": 3,
    "student_steps_per_round": 3,
    "latent_dim": 8,
    "generator_width": 16,
}
"""settings of the tests' methods"""

GeneratorLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""of the teacher's logits, its pooled features, the BN loss and the student's logits"""


def balance(logits: Tensor) -> Tensor:
    """The release's line: the mean prediction, and its entropy with a minus."""
    p = F.softmax(logits, 1).mean(0)
    return (p * torch.log10(p)).sum() * torch.log(torch.tensor(10.0, dtype=p.dtype))


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), summed over classes, mean over the batch."""
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")


def check_rounds(
    method: StepwiseMethod, teacher: nn.Module, student: nn.Module, loss: GeneratorLoss, runtime: Runtime
) -> None:
    """Three rounds of ours and of the release from one start: the same generator and student in float64."""
    config: StepwiseConfig = method.config
    ours = copy.deepcopy(method.generator), copy.deepcopy(student)
    release = Release(config, method, teacher, *ours, loss)
    rounds = Rounds(method, runtime)
    trainer = FreshTrainer(student, method=method, teacher=method.teacher, runtime=runtime)
    trainer.begin_epoch(1)
    for index in range(3):
        torch.manual_seed(index)
        method.train()
        rounds.round(1)
        trainer.steps(config.student_steps_per_round, lambda *_: None)
        torch.manual_seed(index)
        release.round()
    for mine, theirs in zip((method.generator, student), ours, strict=True):
        for (name, value), other in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name} {text}")


class Release:
    """Generator and student take turns."""

    def __init__(
        self,
        config: StepwiseConfig,
        method: StepwiseMethod,
        teacher: nn.Module,
        generator: nn.Module,
        student: nn.Module,
        loss: GeneratorLoss,
    ) -> None:
        self.config, self.teacher, self.generator, self.student, self.loss = config, teacher, generator, student, loss
        self.mean, self.std = (
            torch.tensor(value).double().view(3, 1, 1) for value in (method.info.mean, method.info.std)
        )
        self.hooks = HookedStatistics(teacher, momentum=0.0)
        self.pooled: list[Tensor] = []
        teacher.get_submodule("fc").register_forward_hook(
            lambda _module, inputs, _output: self.pooled.append(inputs[0])
        )
        generator.requires_grad_(True)
        self.adam = torch.optim.Adam(generator.parameters(), config.generator_lr, betas=(0.5, 0.999))
        self.sgd = torch.optim.SGD(student.parameters(), config.student_lr, momentum=0.9, weight_decay=1e-4)

    def images(self, count: int) -> Tensor:
        """As the networks see them: what ends in a BatchNorm is so already."""
        latents = torch.randn(count, self.config.latent_dim, dtype=torch.float64)
        torch.randint(0, 1, (count, 2))  # ours draws a crop of no pixels
        if self.config.generator_output == "sigmoid":
            return (self.generator(latents) - self.mean) / self.std
        decoder, norm = self.generator.get_submodule("decoder"), self.generator.get_submodule("norm")
        maps = decoder.get_submodule("stem")(latents).view(count, self.config.generator_width, 4, 4)
        pixels = decoder.get_submodule("layers")(maps)
        return norm(pixels.tanh() if self.config.generator_output == "tanh-batchnorm" else pixels)

    def round(self) -> None:
        self.student.eval()
        self.generator.train()
        for _ in range(self.config.synthesis_steps):
            self.hooks.inputs.clear()
            self.pooled.clear()
            view = self.images(self.config.synthesis_batch_size)
            logits = self.teacher(view)
            loss = self.loss(logits, self.pooled[0], self.hooks.loss(), self.student(view))
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        self.student.train()
        self.generator.train(self.config.sampling == "train")
        for _ in range(self.config.student_steps_per_round):
            with torch.no_grad():
                view = self.images(self.config.batch_size)
                logits = self.teacher(view)
            self.sgd.zero_grad()
            divergence(self.student(view), logits).backward()
            self.sgd.step()


def check_terms(
    method: StepwiseMethod, teacher: nn.Module, expected: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
) -> None:
    """Every term and its gradient with respect to the view, to 1e-9. `expected` has logits, pooled features and BN
    loss.
    """
    hooks, pooled = HookedStatistics(teacher, momentum=0.0), []
    teacher.get_submodule("fc").register_forward_hook(lambda _module, inputs, _output: pooled.append(inputs[0]))
    torch.manual_seed(0)
    colour = 2 * torch.randn(10, 3, 1, 1, dtype=torch.float64)  # so that predictions differ
    view = (torch.randn(10, 3, 16, 16, dtype=torch.float64) + colour).requires_grad_()
    method.augment = nn.Identity()
    method.generator.forward = lambda _latents: view  # type: ignore[method-assign]
    _, ours = method.step(adversarial=True)
    logits = teacher(view)
    theirs = expected(logits, pooled[0], hooks.loss())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        (found,) = torch.autograd.grad(ours[name], view, retain_graph=True)
        (wanted,) = torch.autograd.grad(value, view, retain_graph=True)
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert wanted.abs().max() > 0, name
    assert torch.equal(method.labels, logits.argmax(1))


def mistaken(method: StepwiseMethod, teacher: FrozenNet) -> pytest.MonkeyPatch:
    """The release's slip: the teacher stands in for the student."""
    patch = pytest.MonkeyPatch()
    patch.setattr(method, "_student", (lambda view: teacher(view, moments=False).logits,))
    return patch
