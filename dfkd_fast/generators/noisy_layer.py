"""The noisy layer of NAYER: a random linear layer, drawn anew each round, as the generator's only source of noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch


class NoisyLayer(nn.Module):
    """A stack of linear layers with N(0, 1) weights; group i of the batch goes through layer i.

    Tran et al., CVPR 2024 (arXiv:2310.00258), section 3.3: K-to-1 noisy layers. Every group holds each class once, so
    one layer makes one image per class. All layers are one batched matrix product.

    Embeddings (B, D) -> (B, out_features). The batch is cut into groups of `group_size`; the last may be smaller.
    Of a `global_batch` of `batch_size` embeddings these are this rank's, and only their layers are used.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        batch_size: int,
        group_size: int,
        global_batch: GlobalBatch = LOCAL_BATCH,
    ) -> None:
        super().__init__()
        self.global_batch = global_batch
        self.group_size = min(group_size, batch_size)
        self.num_layers = -(-batch_size // self.group_size)
        self.weight = nn.Parameter(torch.empty(self.num_layers, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(self.num_layers, 1, out_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 1) and zero the biases, in place."""
        self.weight.normal_()
        self.bias.zero_()

    def forward(self, embeddings: Tensor) -> Tensor:
        batch_size, width = embeddings.shape
        start = self.global_batch.rank * batch_size
        first, end = start // self.group_size, -(-(start + batch_size) // self.group_size)
        before = start - first * self.group_size
        missing = (end - first) * self.group_size - before - batch_size
        grouped = nn.functional.pad(embeddings, (0, 0, before, missing)).view(end - first, self.group_size, width)
        out = torch.baddbmm(self.bias[first:end], grouped, self.weight[first:end])
        return out.flatten(0, 1)[before : before + batch_size]
