"""A generator that brings its own input: latents that are learned together with its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import Size
from dfkd_fast.generators.dcgan import DcganDecoder
from dfkd_fast.generators.decoder import Decoder, SpatialDecoder, make_decoder, make_spatial_decoder
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch
from dfkd_fast.parallel.sync_norm import convert_sync_batchnorm


class LatentGenerator(nn.Module):
    """One learnable latent per image of a round, then the decoder: () -> images (batch_size, in_chans, H, W) in [0, 1].

    Fast (Fang et al., AAAI 2022, arXiv:2112.06253) and SSD-KD optimise z and the weights together. `latents` is
    (batch_size, latent_dim); `spatial`, Fast's form for ImageNet, makes it (batch_size, latent_dim, H/16, W/16).
    `decoder`: another one than the image size's usual, MSARC's say. Of a `global_batch` it holds all
    latents and makes this rank's images.
    """

    def __init__(
        self,
        batch_size: int,
        latent_dim: int,
        image_size: Size,
        *,
        spatial: bool = False,
        width: int = 128,
        in_chans: int = 3,
        decoder: DcganDecoder | None = None,
        global_batch: GlobalBatch = LOCAL_BATCH,
    ) -> None:
        super().__init__()
        self.global_batch = global_batch
        make = make_spatial_decoder if spatial else make_decoder
        self.decoder: Decoder | SpatialDecoder | DcganDecoder = decoder or make(
            latent_dim, image_size, width=width, in_chans=in_chans
        )
        convert_sync_batchnorm(self.decoder, global_batch, "--bn.scope global")
        positions = self.decoder.start_size if spatial else ()
        self.latents = nn.Parameter(torch.randn(batch_size, latent_dim, *positions))

    @torch.no_grad()
    def draw_latents(self) -> None:
        """New latents from N(0, 1), in place."""
        self.latents.normal_()

    def parameter_groups(self, *, lr: float, latent_lr: float) -> list[dict[str, Any]]:
        """What an optimiser takes: the decoder's weights and the latents, each with its learning rate."""
        return [{"params": [*self.decoder.parameters()], "lr": lr}, {"params": [self.latents], "lr": latent_lr}]

    def reset_first_layers(self) -> None:
        """`Decoder.reset_first_layers`; spatial latents come without the first layer that it is about."""
        assert isinstance(self.decoder, Decoder | DcganDecoder)
        self.decoder.reset_first_layers()

    def reset_parameters(self) -> None:
        """A new decoder and new latents, in place."""
        self.decoder.reset_parameters()
        self.draw_latents()

    def forward(self) -> Tensor:
        images: Tensor = self.decoder(self.global_batch.local_rows(self.latents))
        return images
