"""Names and facts of everything on offer, as literals: `dfkd-fast ls` and `--help` read them without torch."""

from __future__ import annotations

from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Literal, NamedTuple

METHODS: dict[str, str] = {
    "nayer": "dfkd_fast.methods.nayer:Nayer",
    "muse-s": "dfkd_fast.methods.muse.method:MuseS",
    "muse": "dfkd_fast.methods.muse.method:Muse",
    "deepinversion": "dfkd_fast.methods.deepinversion:DeepInversion",
    "fast": "dfkd_fast.methods.fast:Fast",
    "ssdkd": "dfkd_fast.methods.ssdkd:Ssdkd",
    "cmi": "dfkd_fast.methods.cmi.method:Cmi",
    "msarc": "dfkd_fast.methods.msarc:Msarc",
    "spaceshipnet": "dfkd_fast.methods.spaceshipnet:SpaceshipNet",
    "hidfd": "dfkd_fast.methods.hidfd.method:Hidfd",
    "dafl": "dfkd_fast.methods.dafl:Dafl",
    "zskt": "dfkd_fast.methods.zskt:Zskt",
    "dfq": "dfkd_fast.methods.dfq:Dfq",
    "dfad": "dfkd_fast.methods.dfad:Dfad",
    "kd": "dfkd_fast.methods.kd:Kd",
    "cpnet": "dfkd_fast.methods.cpnet.method:Cpnet",
    "procedural": "dfkd_fast.methods.procedural:Procedural",
}
"""method name -> "module:Class"; the class's config is `<Class>Config` in the same module"""

BENCH_TARGETS = (
    "nayer/cifar10",
    "nayer/cifar100",
    "fast/cifar10-fast5",
    "ssdkd/cifar10",
    "cmi/cifar10",
    "deepinversion/cifar10",
    "muse-s/imagenet",
    "muse/imagenet",
)
"""presets that `bench methods` measures when nothing is named"""


class MethodFacts(NamedTuple):
    """What `dfkd-fast ls methods` and the README's table say of a method without importing it."""

    title: str
    """how papers call it"""
    venue: str
    """where and when it was published"""
    paper: str
    """as in the class: the arXiv id, or where else it is found"""
    cifar10: tuple[float, str] | None = None
    """published top-1 in percent for `CIFAR10_PAIR`, and where; of several recipes the default one's"""
    digits: float | None = None
    """our top-1 in percent on digits, mean of three seeds (bench/results/digits.jsonl); None: not measured"""
    loop: Literal["alternating", "stepwise"] = "alternating"
    """as in the class"""
    batchnorm: Literal["yes", "or --bn-weight 0", "no"] = "or --bn-weight 0"
    """whether the teacher must have BatchNorm layers; the flag gives the term up that reads them"""
    text: bool = False
    """whether it takes `--text`: what classes are called, or vectors that stand for it"""
    real_images: bool = False
    """whether real images are part of the method: then it is not data-free in the strict sense"""
    page: str = ""
    """its page in docs/methods; without it the method's own name"""

    @property
    def arxiv(self) -> str:
        """The number of its arXiv id; empty where it has none."""
        return self.paper.removeprefix("arXiv:") if self.paper.startswith("arXiv:") else ""


FACTS: dict[str, MethodFacts] = {
    "nayer": MethodFacts("NAYER", "CVPR 2024", "arXiv:2310.00258", (95.21, "NAYER T1"), 99.32, text=True),
    "muse-s": MethodFacts("MUSE-S", "2024", "arXiv:2411.17046", (94.31, "MUSE T2"), 98.70, text=True, page="muse"),
    "muse": MethodFacts("MUSE", "2024", "arXiv:2411.17046", (94.66, "MUSE T2"), 98.89, text=True),
    "deepinversion": MethodFacts("DeepInversion", "CVPR 2020", "arXiv:1912.08795", (93.26, "CMI T1"), 97.46),
    "fast": MethodFacts("Fast-5", "AAAI 2022", "arXiv:2112.06253", (93.63, "SSD-KD T2"), 99.01),
    "ssdkd": MethodFacts("SSD-KD", "CVPR 2024", "arXiv:2406.07876", (92.92, "SSD-KD T1"), 98.64),
    "cmi": MethodFacts("CMI", "IJCAI 2021", "arXiv:2105.08584", (94.84, "CMI T1"), 98.21),
    "msarc": MethodFacts("MSARC", "Scientific Reports 2024", "Scientific Reports 2024", (94.91, "MSARC T2"), 97.96),
    "spaceshipnet": MethodFacts("SpaceshipNet", "CVPR 2023", "CVPR 2023", (95.39, "NAYER T1"), 97.46),
    "hidfd": MethodFacts(
        "HiDFD", "AAAI 2025", "arXiv:2412.13525", (94.74, "HiDFD T1"), 99.75, batchnorm="no", real_images=True
    ),
    "dafl": MethodFacts(
        "DAFL", "ICCV 2019", "arXiv:1904.01186", (92.22, "CMI README"), 96.23, loop="stepwise", batchnorm="no"
    ),
    "zskt": MethodFacts(
        "ZSKT", "NeurIPS 2019", "arXiv:1905.09768", (93.32, "CMI README"), 95.49, loop="stepwise", batchnorm="no"
    ),
    "dfq": MethodFacts("DFQ", "CVPR Workshops 2020", "arXiv:2005.04136", (94.61, "CMI README"), 98.27, loop="stepwise"),
    "dfad": MethodFacts("DFAD", "2019", "arXiv:1912.11006", (93.3, "DFAD"), 49.54, loop="stepwise", batchnorm="no"),
    "kd": MethodFacts(
        "KD on real images", "2015", "arXiv:1503.02531", (95.20, "Fast README"), 98.64, batchnorm="no", real_images=True
    ),
    "cpnet": MethodFacts("CPNet", "ICCV 2025", "ICCV 2025", batchnorm="yes", text=True),
    "procedural": MethodFacts("KD on drawn pictures", "CVPR 2025", "arXiv:2411.12817", batchnorm="no"),
}
"""method name -> facts, for every method of `METHODS`.

A new method adds its line here; tests/methods/test_facts.py holds it against the class, the presets and the measured
runs, and says what is missing. `digits` stays None until `make bench SUITE=digits` has its three seeds. Then
`make readme` writes the README's table anew.
"""

CIFAR10_PAIR = "ResNet-34 -> ResNet-18"
"""the networks of `MethodFacts.cifar10`: every paper has them"""

MODELS: dict[str, tuple[str, str]] = {
    "resnet34": ("dfkd_fast.models.cifar:resnet34", "ResNet-34 for small images, 21.3M parameters"),
    "resnet18": ("dfkd_fast.models.cifar:resnet18", "ResNet-18 for small images, 11.2M parameters"),
    "wrn40_2": ("dfkd_fast.models.cifar:wrn40_2", "Wide ResNet 40-2, 2.2M parameters"),
    "wrn40_1": ("dfkd_fast.models.cifar:wrn40_1", "Wide ResNet 40-1, 0.56M parameters"),
    "wrn16_2": ("dfkd_fast.models.cifar:wrn16_2", "Wide ResNet 16-2, 0.69M parameters"),
    "wrn16_1": ("dfkd_fast.models.cifar:wrn16_1", "Wide ResNet 16-1, 0.18M parameters"),
    "resnet20": ("dfkd_fast.models.cifar_resnet:resnet20", "ResNet-20 for CIFAR, 16 to 64 channels, 0.27M parameters"),
    "resnet32": ("dfkd_fast.models.cifar_resnet:resnet32", "ResNet-32 for CIFAR, 16 to 64 channels, 0.46M parameters"),
    "resnet44": ("dfkd_fast.models.cifar_resnet:resnet44", "ResNet-44 for CIFAR, 16 to 64 channels, 0.66M parameters"),
    "resnet56": ("dfkd_fast.models.cifar_resnet:resnet56", "ResNet-56 for CIFAR, 16 to 64 channels, 0.85M parameters"),
    "resnet110": (
        "dfkd_fast.models.cifar_resnet:resnet110",
        "ResNet-110 for CIFAR, 16 to 64 channels, 1.7M parameters",
    ),
    "vgg11": ("dfkd_fast.models.cifar:vgg11", "VGG-11 with BatchNorm for small images, 9.2M parameters"),
    "resnet8": ("dfkd_fast.models.small:resnet8", "ResNet-8, 78k parameters"),
    "cnn": ("dfkd_fast.models.small:cnn", "three-layer BatchNorm network, 24k parameters"),
    "cnn_s": ("dfkd_fast.models.small:cnn_s", "three-layer BatchNorm network, 6.4k parameters"),
}
"""network name -> "module:function" and a description; parameters are counted for 10 classes"""

OTHERS = ("FILE.py:NAME", "package.module:NAME", "zoo:NAME", "tv:NAME", "timm:NAME", "hf:FOLDER", "FILE.pt2", "FILE.pt")
"""forms of a network's name beside those of `MODELS`"""

MADE_FOR: dict[str, int] = dict.fromkeys(("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), 32)
"""network name -> pixels per side of the images that it was designed for, for those that the field uses at one size
alone; what stands where neither flags nor a file nor a data set say another
"""


ENTRY_POINTS = "dfkd_fast.methods"
"""group of entry points by which other distributions have methods of theirs found: name = "module:Class" """


def installed_methods() -> dict[str, str]:
    """Methods of other distributions: name -> "module:Class"; of a name that is ours, ours stays."""
    return {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS) if point.name not in METHODS}


INSTALLED = installed_methods()
METHODS |= INSTALLED
FACTS |= {name: MethodFacts(name, "installed", place.partition(":")[0]) for name, place in INSTALLED.items()}


def presets(method: str) -> dict[str, Traversable]:
    """The presets of a method: name -> TOML file."""
    folder = resources.files("dfkd_fast") / "presets" / method
    files = [file for file in folder.iterdir() if file.name.endswith(".toml")] if folder.is_dir() else []
    named = {file.name.removesuffix(".toml"): file for file in files}
    return {name: named[name] for name in sorted(named)}
