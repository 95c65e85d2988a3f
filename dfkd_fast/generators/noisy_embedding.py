"""NAYER's generator, which MUSE takes over: from the class's embedding, through a noisy layer, to an image."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from dfkd_fast.generators.decoder import Decoder, make_decoder
from dfkd_fast.generators.noisy_layer import NoisyLayer
from dfkd_fast.generators.printed_decoder import PrintedDecoder
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch
from dfkd_fast.parallel.sync_norm import convert_sync_batchnorm


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
        image_size: int,
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
