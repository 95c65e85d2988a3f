"""Let torchvision be imported beside a CPU-only torch. Every import of torchvision or timm here goes through it.

The Linux wheels of torchvision are CUDA builds: beside a CPU-only torch their operator library cannot be loaded, and
the import then fails because fake kernels are registered for operators that nobody has defined. Declaring the two
schemas is enough. Models, datasets and transforms work; `torchvision.ops.nms` and the image decoders do not.
"""

from __future__ import annotations

import importlib
import sys

import torch

_DECLARED: list[torch.library.Library] = []  # a library that is dropped takes its schemas with it

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def ensure_importable() -> None:
    """Import torchvision, declaring its operators first where its own library cannot. Costs nothing the second time."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        # Tried first because a torchvision that fits this torch defines the operators itself, and twice is an error.
        if "operator torchvision::" not in str(error) or _DECLARED:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _DECLARED.append(library)
        importlib.import_module("torchvision")


def imagenet_categories() -> tuple[str, ...]:
    """ImageNet-1k's names in the order of their sorted WordNet ids, as torchvision's published weights list them."""
    ensure_importable()
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
