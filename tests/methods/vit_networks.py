"""A vision transformer for digits-sized images, as a network that `--teacher` and `--student` can name."""

from __future__ import annotations

import torch
from torch import nn

from dfkd_fast.models.torchvision_cpu import ensure_importable


def vit(num_classes: int, *, in_chans: int, image_size: int) -> nn.Module:
    """Patches of 4 pixels, two blocks of timm's plain transformer; positions that differ as trained ones do."""
    ensure_importable()
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=image_size,
        patch_size=4,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=24,
        depth=2,
        num_heads=2,
    )
    torch.nn.init.normal_(model.pos_embed)
    return model
