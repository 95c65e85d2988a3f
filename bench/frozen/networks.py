"""The networks of the comparison, roughly by how much they are used, and the images that they see."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from dfkd_fast.models.torchvision_cpu import ensure_importable

BATCH = 16
"""the least for which torch gives 1x1 convolutions in fp32 on one thread to oneDNN"""

IMAGE_SIZE = 96
HEAVY = (
    *(
        "tv:vgg16_bn",
        "tv:wide_resnet50_2",
        "tv:resnet101",
        "tv:densenet121",
        "tv:convnext_tiny",
        "tv:efficientnet_v2_s",
    ),
    *("timm:cspdarknet53", "timm:hrnet_w18_small", "timm:res2net50_26w_4s"),
    *("timm:dpn68", "timm:xception41"),
)
HEAVY_SIZE = 64
"""pixels; of the networks that would take seconds a step at more"""

NETWORKS = (
    *("tv:resnet18", "timm:mobilenetv3_large_100", "tv:mobilenet_v2", "tv:resnet50", "timm:efficientnet_b0"),
    *("tv:resnet34", "tv:efficientnet_b0", "tv:vgg16_bn", "tv:densenet121", "tv:mobilenet_v3_small"),
    *("timm:regnety_008", "tv:shufflenet_v2_x1_0", "tv:convnext_tiny", "timm:resnet50d", "tv:mobilenet_v3_large"),
    *("timm:seresnet50", "timm:tf_efficientnetv2_b0", "tv:regnet_y_400mf", "timm:ghostnet_100", "timm:cspdarknet53"),
    *("tv:mnasnet1_0", "tv:resnext50_32x4d", "timm:repvgg_a0", "timm:mobilenetv4_conv_small", "timm:lcnet_100"),
    *("timm:rexnet_100", "tv:googlenet", "tv:wide_resnet50_2", "timm:convnext_nano", "timm:ese_vovnet19b_dw"),
    *("timm:dla34", "timm:repvit_m1", "timm:mobileone_s0", "timm:fbnetc_100", "timm:resnet26t"),
    *("timm:hardcorenas_a", "timm:regnetx_008", "timm:dpn68", "tv:inception_v3", "tv:efficientnet_v2_s"),
    *("tv:resnet101", "timm:mixnet_s", "timm:hrnet_w18_small", "timm:res2net50_26w_4s", "timm:fastvit_t8"),
    *("tv:regnet_x_400mf", "timm:gernet_s", "timm:tinynet_a", "timm:xception41"),
)
"""`tv:` torchvision's, `timm:` timm's; two of them, the convnexts, have no BatchNorm"""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shape_of(name: str) -> tuple[int, int, int, int]:
    """(B, C, H, W) of the images."""
    size = HEAVY_SIZE if name in HEAVY else IMAGE_SIZE
    return (BATCH, 3, size, size)


def why_not(name: str) -> str:
    """Why a network cannot be had here, or empty."""
    library, _, _ = name.partition(":")
    missing = library == "timm" and importlib.util.find_spec("timm") is None
    return "timm is not installed (pip install -e '.[timm]')" if missing else ""


def build(name: str) -> nn.Module:
    """The network, with random weights and 1000 classes."""
    ensure_importable()
    library, _, model = name.partition(":")
    if library == "timm":
        import timm

        made: nn.Module = timm.create_model(model)
        return made
    import torchvision

    extra = {"aux_logits": False, "init_weights": False} if model in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(model, weights=None, **extra)
