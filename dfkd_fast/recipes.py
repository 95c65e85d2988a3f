"""Training recipes as data, free of torch, so that the command line can read and show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """How a teacher is trained on real images: SGD with a cosine to zero. Defaults: the field's CIFAR recipe (NAYER).

    The last epoch's network is the result; test images choose nothing.
    """

    epochs: int = 200
    """passes over the training images"""
    batch_size: int = 128
    """images per step"""
    lr: float = 0.1
    """learning rate of the first step; falls to zero along a cosine, step by step"""
    momentum: float = 0.9
    """SGD momentum"""
    weight_decay: float = 5e-4
    """L2 penalty on every parameter"""
    label_smoothing: float = 0.0
    """share of the target probability that is spread evenly over the classes"""
    crop_padding: int = 4
    """random crops from the image padded by this many black pixels a side; 0: no crops"""
    flip: bool = True
    """random horizontal flips; wrong for digits and letters"""
    seed: int = 0
    """seed of the initial weights, the order of images and their augmentation"""
    precision: Literal["same", "fp32", "bf16", "fp16"] = "same"
    """numeric mode of the training, where it is not the command's own --precision; in a run in tf32 fp32 is that"""
