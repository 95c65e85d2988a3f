"""A network with its normalisation inside: the form in which students are handed to other programs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfkd_fast.models.info import ModelInfo


class NormalizedNetwork(nn.Module):
    """Float images (B, C, H, W) in [0, 1] -> logits (B, K): normalises by `info.mean` and `info.std`, then runs
    `network`.

    Mean and std are buffers that move with the module and are in every exported graph, but not in its state_dict:
    that has the network's own tensors, under `network.`.
    """

    def __init__(self, network: nn.Module, info: ModelInfo) -> None:
        super().__init__()
        self.network, self.info = network, info
        # no annotations in the class: torch.jit.script would look for them, as text, in vain
        self.mean = nn.Buffer(torch.tensor(info.mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(info.std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], of `info.shape` -> logits (B, K)."""
        return self.network((images - self.mean) / self.std)
