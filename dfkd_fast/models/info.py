"""A network's input and output, and their source: flags, its file, its library, its data set.

Never the images that it is evaluated on: two evaluation sets would make two students.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.models.torchvision_cpu import imagenet_categories


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a network expects and answers: images (B, *shape) -> logits (B, num_classes)."""

    name: str
    """a name of `catalog.MODELS`, `zoo:NAME`, `tv:NAME` or `timm:NAME`"""
    num_classes: int
    """width of the classifier"""
    image_size: ImageSize
    """height and width of the input in pixels; an int is taken for both"""
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    in_chans: int = 3
    """channels of the input"""
    interpolation: str = "bilinear"
    """filter that scales real images to `image_size`: bilinear, bicubic, lanczos, box or nearest"""
    class_names: tuple[str, ...] = ()
    """what the outputs are called, in their order; empty where nobody has said it"""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """field -> who said it, in words; of this reading, so no part of a file"""

    claimed_top1: float | None = field(default=None, compare=False)
    """share of held-out images that its file says it names rightly; of this reading, so no part of a file"""

    claimed_by: str = field(default="", compare=False)
    """the entry of a file of others that says so, `best_acc1`"""
    published: str = field(default="", compare=False)
    """which published weights were loaded, in words; empty where it was a file, or none; of this reading"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", ImageSize.of(self.image_size))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return self.in_chans, *self.image_size

    def blank(self, like: Tensor) -> Tensor:
        """One black image (1, in_chans, H, W), of the dtype and device of `like`: to see what a network hands out."""
        return like.new_zeros(1, *self.shape)

    def header(self) -> dict[str, Any]:
        """What a file says of its network, as JSON: every field but those of one reading."""
        said = {key: value for key, value in asdict(self).items() if key not in _OF_A_READING}
        return {**said, "image_size": self.image_size.written}

    def described(self) -> str:
        """Input and classes in one line, each value with who said it."""

        def said(*keys: str) -> str:
            who = dict.fromkeys(self.sources[key] for key in keys if key in self.sources)
            return f" ({', '.join(who)})" if who else ""

        numbers = " ".join(f"{value:.4g}" for value in self.mean), " ".join(f"{value:.4g}" for value in self.std)
        colour = {1: "grey", 3: "RGB"}.get(self.in_chans, f"{self.in_chans} channels")
        return (
            f"{self.image_size} px{said('image_size')}, {colour}, mean {numbers[0]}, std {numbers[1]}"
            f"{said('mean', 'std')}, {self.interpolation}; {self.num_classes} classes{said('num_classes')}"
        )


class Source(NamedTuple):
    """Somebody who knows some of a network's values."""

    who: str
    """in words; for flags "" : each value then names its own"""
    values: Mapping[str, Any]
    """fields of `ModelInfo`; None for what it does not know"""


FIELDS = ("num_classes", "image_size", "mean", "std", "in_chans", "interpolation", "class_names")
"""fields of `ModelInfo` that somebody must state"""
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box", "nearest")
"""filters that real images can be scaled with"""
_OF_A_READING = ("sources", "claimed_top1", "claimed_by", "published")
_SHAPE = ("num_classes", "image_size")
_ASKED = ("num_classes", "image_size", "mean", "std")


def data_set_source(name: str) -> Source:
    """What the convention of a data set (a name of `DATA_SETS`, or "") says."""
    if not name:
        return Source("", {})
    values = DATA_SETS[name]._asdict()
    return Source(f"as for {name}", values | ({"class_names": imagenet_categories()} if name == "imagenet" else {}))


def resolve(
    spec: str,
    *,
    flag: str,
    flags: Source,
    file: Source,
    library: Source,
    data_set: Source,
    last: Source,
) -> ModelInfo:
    """The values of network `spec`, each from the first source that knows it: flags, the file, the library, the data
    set, `last`. A library knows nothing of how many classes and pixels a user's own file is for, so there the data set
    comes before it.

    Raises UserError, naming `flag`, for what nobody says, and for channels that do not fit each other.
    """
    shape, rest = (flags, file, data_set, library, last), (flags, file, library, data_set, last)
    known, sources = known_values({key: shape if key in _SHAPE else rest for key in FIELDS})
    absent = [key for key in _ASKED if key not in known]
    if absent:
        raise UserError(f"{flag} {spec}: {_how_to_state(absent)}")
    known["class_names"] = _fitting(known.get("class_names", ()), known["num_classes"])
    _check_channels(spec, flag, known, sources)
    known.setdefault("interpolation", "bilinear")
    return ModelInfo(name=spec, **{**known, "in_chans": len(known["mean"])}, sources=sources)


def known_values(orders: Mapping[str, Sequence[Source]]) -> tuple[dict[str, Any], dict[str, str]]:
    """For each field the value of the first source in its order that knows it, and who that is; none for the others."""
    known: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, order in orders.items():
        source = next((source for source in order if source.values.get(key)), None)
        if source is not None:
            known[key] = source.values[key]
            sources[key] = source.who or f"--{key.replace('_', '-')}"
    return known, sources


def _how_to_state(absent: Sequence[str]) -> str:
    """What is not known, and how to say it."""
    examples = {
        "num_classes": "--num-classes 10",
        "image_size": "--image-size 32",
        "mean": "--mean 0.4914 0.4822 0.4465",
        "std": "--std 0.2023 0.1994 0.2010",
    }
    stated = " ".join(examples[key] for key in absent)
    return f"{', '.join(absent)} not known: neither flags nor its file nor its library say; state them, as {stated}"


def _check_channels(spec: str, flag: str, known: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    mean, std, channels = len(known["mean"]), len(known["std"]), known.get("in_chans")
    if mean != std:
        raise UserError(
            f"{flag} {spec}: mean has {mean} values ({sources['mean']}), std {std} ({sources['std']}); "
            "give --mean and --std, one value for each channel"
        )
    if channels not in (None, mean):
        ones = "1 value each" if channels == 1 else f"{channels} values each"
        if sources["in_chans"] == "--in-chans" or sources["mean"] != "--mean":
            raise UserError(
                f"--in-chans {channels}: the mean of {flag} {spec} has {mean} values ({sources['mean']}); "
                f"give --mean and --std with {ones}"
            )
        raise UserError(f"--mean: {mean} values, but {flag} {spec} takes {channels} channels; give --mean with {ones}")


def _fitting(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Names that are as many as the classes; those of a library or data set of other classes are none."""
    return tuple(names) if len(names) == num_classes else ()
