"""The zoo: networks that others have published, by name, `zoo:NAME`, each with a card. Free of torch: `ls` reads it."""

from __future__ import annotations

from typing import Any, NamedTuple

from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.errors import unknown

PREFIX = "zoo:"


class Card(NamedTuple):
    """What is known of a published network without opening its file."""

    network: str
    """a name of `catalog.MODELS`"""
    data_set: str
    """what it was trained on, a name of `DATA_SETS`; its outputs have the order of that set's class names"""
    top1: float
    """published accuracy in percent, on the test images of `data_set`"""
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]: what it was trained with, whatever the field's convention is"""
    std: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    file: str
    """the checkpoint's name, as published"""
    sha256: str
    """of that file, 64 hex digits"""
    source: str
    """page of its authors"""
    url: str
    """where the file can be fetched, at a fixed commit"""
    licence: str
    """SPDX identifier and copyright"""

    def values(self) -> dict[str, Any]:
        """What it expects and answers, by the names of `ModelInfo`."""
        data = DATA_SETS[self.data_set]
        shape = {"num_classes": data.num_classes, "image_size": data.image_size, "class_names": data.class_names}
        return shape | {"mean": self.mean, "std": self.std}

    def described(self) -> str:
        """File, accuracy, source and licence in one line."""
        return f"{self.file} of {self.source} ({self.top1:.2f} %, {self.licence.partition(',')[0]})"


def _akamaster(network: str, top1: float, sha256: str) -> Card:
    """A ResNet that Yerlan Idelbayev trained on CIFAR-10, with the normalisation of ImageNet."""
    page, commit = "akamaster/pytorch_resnet_cifar10", "d5489e8995e81e91ce6b1d69dcc98ad579b0b153"
    file = f"{network}-{sha256[:8]}.th"
    return Card(
        network=network,
        data_set="cifar10",
        top1=top1,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        file=file,
        sha256=sha256,
        source=f"https://github.com/{page}",
        url=f"https://raw.githubusercontent.com/{page}/{commit}/pretrained_models/{file}",
        licence="BSD-2-Clause, Copyright (c) 2018, Yerlan Idelbayev",
    )


ZOO: dict[str, Card] = {
    "resnet20": _akamaster("resnet20", 91.73, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "resnet32": _akamaster("resnet32", 92.63, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
    "resnet44": _akamaster("resnet44", 93.10, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
    "resnet56": _akamaster("resnet56", 93.39, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
}
"""name behind `zoo:` -> card; the file of `resnet20` lies beside this module"""


def is_zoo(spec: str) -> bool:
    """Whether a network is named by its card."""
    return spec.startswith(PREFIX)


def card_of(spec: str, flag: str) -> Card:
    """The card of `zoo:NAME`. Raises UserError, which begins with `flag` and the spec, for a name that has none."""
    name = spec.removeprefix(PREFIX)
    if name not in ZOO:
        raise unknown(flag, spec, (f"{PREFIX}{known}" for known in ZOO))
    return ZOO[name]
