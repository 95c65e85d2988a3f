"""What there is, as literals: `dfkd-fast ls` and `--help` read this file, so they answer without importing torch."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

METHODS: dict[str, str] = {
    "nayer": "dfkd_fast.methods.nayer:Nayer",
    "muse-s": "dfkd_fast.methods.muse:MuseS",
    "muse": "dfkd_fast.methods.muse:Muse",
    "deepinversion": "dfkd_fast.methods.deepinversion:DeepInversion",
    "fast": "dfkd_fast.methods.fast:Fast",
    "ssdkd": "dfkd_fast.methods.ssdkd:Ssdkd",
    "cmi": "dfkd_fast.methods.cmi:Cmi",
}
"""method name -> "module:Class"; the class's config is `<Class>Config` in the same module"""

MODELS: dict[str, tuple[str, str]] = {
    "resnet34": ("dfkd_fast.models.cifar:resnet34", "ResNet-34 for small images, 21.3M parameters"),
    "resnet18": ("dfkd_fast.models.cifar:resnet18", "ResNet-18 for small images, 11.2M parameters"),
    "wrn40_2": ("dfkd_fast.models.cifar:wrn40_2", "Wide ResNet 40-2, 2.2M parameters"),
    "wrn40_1": ("dfkd_fast.models.cifar:wrn40_1", "Wide ResNet 40-1, 0.56M parameters"),
    "wrn16_2": ("dfkd_fast.models.cifar:wrn16_2", "Wide ResNet 16-2, 0.69M parameters"),
    "wrn16_1": ("dfkd_fast.models.cifar:wrn16_1", "Wide ResNet 16-1, 0.18M parameters"),
    "vgg11": ("dfkd_fast.models.cifar:vgg11", "VGG-11 with BatchNorm for small images, 9.2M parameters"),
    "resnet8": ("dfkd_fast.models.small:resnet8", "ResNet-8, 78k parameters"),
    "cnn": ("dfkd_fast.models.small:cnn", "three-layer BatchNorm network, 24k parameters"),
    "cnn_s": ("dfkd_fast.models.small:cnn_s", "three-layer BatchNorm network, 6.4k parameters"),
}
"""network name -> "module:function" and a description; parameters are counted for 10 classes"""


def presets(method: str) -> dict[str, Traversable]:
    """The presets of a method: name -> TOML file."""
    folder = resources.files("dfkd_fast") / "presets" / method
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    return {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}
