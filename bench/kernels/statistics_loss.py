"""The BN-statistics loss as others compute it, and ours: four ways to the same number."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dfkd_kernels import bn_stat_loss, freeze_teacher

Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]
BN_WEIGHT = 10.0


def naive_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance as the published codes take them: three passes and a transposed copy."""
    by_channel = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1)
    return x.mean([0, 2, 3]), by_channel.var(1, unbiased=False)


def one_pass_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch's own one-pass kernel."""
    var, mean = torch.var_mean(x, [0, 2, 3], correction=0)
    return mean, var


def distance(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> Tensor:
    """||mean - running_mean|| + ||var - running_var||."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return torch.norm(norm.running_mean - mean, 2) + torch.norm(norm.running_var - var, 2)


class HookedNetwork:
    """A network whose BatchNorms are watched by forward hooks."""

    def __init__(self, network: nn.Module, statistics: Statistics) -> None:
        self.network = copy.deepcopy(network)
        self.terms: list[Tensor] = []
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(
                    lambda norm, inputs, _: self.terms.append(distance(norm, *statistics(inputs[0])))
                )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, statistics loss)"""
        self.terms.clear()
        logits = self.network(x)
        return logits, torch.stack(self.terms).sum()


class _InlineNorm(nn.Module):
    """A BatchNorm that computes its distance in its own forward: nothing that stops torch.compile."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.term = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.term = distance(self.norm, *one_pass_statistics(x))
        y: Tensor = self.norm(x)
        return y


class InlineNetwork(nn.Module):
    """A network without hooks, for torch.compile."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for name, module in list(self.network.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                self.network.set_submodule(name, _InlineNorm(module))
        self.norms = [module for module in self.network.modules() if isinstance(module, _InlineNorm)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, statistics loss)"""
        logits = self.network(x)
        return logits, torch.stack([norm.term for norm in self.norms]).sum()


class FusedNetwork:
    """Ours."""

    def __init__(self, network: nn.Module, *, with_loss: bool = True) -> None:
        self.teacher = freeze_teacher(network)
        self.with_loss = with_loss

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits, statistics loss)"""
        logits, _, moments = self.teacher(x, moments=self.with_loss)
        return logits, bn_stat_loss(moments, self.teacher.targets) if self.with_loss else None


def plain_network(network: nn.Module) -> Callable[[Tensor], tuple[Tensor, None]]:
    """The network as it is, without the loss."""
    twin = copy.deepcopy(network)
    return lambda x: (twin(x), None)


def input_gradient(run: Callable[[Tensor], tuple[Tensor, Tensor | None]], images: Tensor) -> Callable[[], Tensor]:
    """One forward and the gradient of a synthesis-like loss with respect to the images."""

    def step() -> Tensor:
        x = images.detach().requires_grad_()
        logits, statistics = run(x)
        loss = logits.float().logsumexp(1).mean()
        if statistics is not None:
            loss = loss + BN_WEIGHT * statistics.float()
        (gradient,) = torch.autograd.grad(loss, x)
        return gradient

    return step


def calibrated(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Eval mode, weights frozen, BN statistics of one random batch: activations of an ordinary size in any dtype."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(16, *shape[1:]))
    return network.eval().requires_grad_(False)
