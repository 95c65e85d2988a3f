"""NAYER's generator, which MUSE takes over: from the class's embedding, through a noisy layer, to an image."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import Size
from dfkd_fast.generators.decoder import Decoder, make_decoder
from dfkd_fast.generators.printed_decoder import PrintedDecoder
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch
from dfkd_fast.parallel.sync_norm import convert_sync_batchnorm


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


class NoisyEmbeddingGenerator(nn.Module):
    """Label embedding -> BN -> noisy layers -> decoder (Tran et al., CVPR 2024, arXiv:2310.00258, Eq. 3).

    Embeddings (B, embedding_dim) -> images (B, in_chans, H, W) in [0, 1], or without bounds where a `decoder` is given
    in place of the released one. `batch_size` is the B that it is made for: every `num_classes` images in turn share
    one noisy layer of `noise_features` outputs. `width`: channels of the decoder's first blocks. Of a `global_batch` it
    takes all embeddings and makes this rank's images.
    """

    def __init__(
        self,
        embedding_dim: int,
        image_size: Size,
        *,
        batch_size: int,
        num_classes: int,
        noise_features: int = 1000,
        width: int = 128,
        in_chans: int = 3,
        decoder: PrintedDecoder | None = None,
        global_batch: GlobalBatch = LOCAL_BATCH,
    ) -> None:
        super().__init__()
        self.global_batch = global_batch
        self.norm = nn.BatchNorm1d(embedding_dim)
        groups = {"batch_size": batch_size, "group_size": num_classes}
        self.noise = NoisyLayer(embedding_dim, noise_features, **groups, global_batch=global_batch)
        made: Decoder | PrintedDecoder = decoder or make_decoder(
            noise_features, image_size, width=width, in_chans=in_chans
        )
        self.decoder = convert_sync_batchnorm(made, global_batch, "--bn.scope global")

    @classmethod
    def of(cls, info: ModelInfo, embedding_dim: int, *, noise_features: int, width: int, **more: Any) -> Self:
        """For the images that a teacher expects; `printed`: with the decoder of NAYER's tables in place of the released
        one. The other arguments are the constructor's.
        """
        if more.pop("printed", False):
            more["decoder"] = PrintedDecoder.of(info, noise_features, width=width)
        more |= {"num_classes": info.num_classes, "in_chans": info.in_chans}
        return cls(embedding_dim, info.image_size, noise_features=noise_features, width=width, **more)

    def reset_parameters(self) -> None:
        """Re-initialise every layer in place."""
        for part in (self.norm, self.noise, self.decoder):
            part.reset_parameters()

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.decoder(self.noise(self.global_batch.local_rows(self.norm(embeddings))))
