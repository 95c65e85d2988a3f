"""What the classes of a data set are called, in words that a text encoder understands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dfkd_fast.errors import UserError

_WORDNET_ID = re.compile(r"n\d{8}")

WORDNET = {
    # Imagenette
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
    # Imagewoof
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}
"""names of the WordNet ids that Imagenette's and Imagewoof's folders are called"""


def read_class_names(file: Path, num_classes: int, *, flag: str = "--class-names") -> tuple[str, ...]:
    """One name a line, in the order of the classes. Raises UserError for a file that is not that."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {file}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != num_classes:
        raise UserError(f"{flag} {file}: {len(names)} names, one a line; the teacher has {num_classes} classes")
    return names


def spoken_names(folders: Sequence[str]) -> tuple[str, ...] | None:
    """Names for classes that a data set calls `folders`; None where those are codes that nobody here can read.

    WordNet ids are looked up: those of Imagenette and Imagewoof here, all thousand of ImageNet-1k in torchvision.
    """
    if not all(_WORDNET_ID.fullmatch(name) for name in folders):
        return tuple(folders)
    if len(folders) == 1000:
        return _imagenet_names()
    known = [WORDNET.get(name) for name in folders]
    return None if None in known else tuple(name for name in known if name is not None)


def _imagenet_names() -> tuple[str, ...]:
    """ImageNet-1k's names in the order of their sorted ids, as torchvision's published weights list them."""
    from dfkd_fast.models.torchvision_cpu import ensure_importable

    ensure_importable()
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
