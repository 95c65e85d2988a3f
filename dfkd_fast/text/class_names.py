"""Class names of data sets, in words that a text encoder understands."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.config.wordnet import wordnet_words
from dfkd_fast.errors import UserError
from dfkd_fast.models.torchvision_cpu import ensure_importable, imagenet_categories

_WORDNET_ID = re.compile(r"n\d{8}")

_CODES = {
    "akiec": "actinic keratosis, Bowen's disease",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}
"""what HAM10000's folders stand for"""


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


def spoken_names(folders: Sequence[str], data_set: str = "") -> tuple[str, ...] | None:
    """Names for classes that a data set calls `folders`; None where those are codes that nobody here can read.

    WordNet ids are looked up: those of Tiny-ImageNet, Imagenette and Imagewoof in `wordnet.tsv`, all thousand of
    ImageNet-1k in torchvision, others in timm where it is installed. Numbers (MedMNIST's) are the indices into the
    names of `data_set`, a name of `DATA_SETS`, if there are as many. A name may have synonyms behind commas.
    """
    if all(name in _CODES for name in folders):
        return tuple(_CODES[name] for name in folders)
    known = DATA_SETS[data_set].class_names if data_set else ()
    if all(name.isdecimal() for name in folders) and sorted(map(int, folders)) == list(range(len(known))):
        return tuple(known[int(name)] for name in folders)
    if not all(_WORDNET_ID.fullmatch(name) for name in folders):
        return tuple(folders)
    if len(folders) == 1000:
        return imagenet_categories()
    words = {name: written for table in wordnet_words().values() for name, written in table.items()}
    if not words.keys() >= set(folders):
        words |= _timm_words("imagenet-22k")
    return tuple(words[name] for name in folders) if words.keys() >= set(folders) else None


def first_synonym(name: str) -> str:
    """A name without its synonyms: "tench" of "tench, Tinca tinca"."""
    return name.partition(",")[0].strip() or name


def with_synonyms(names: tuple[str, ...], *, flag: str) -> tuple[str, ...]:
    """`names`, but WordNet's words with their synonyms where they are torchvision's for ImageNet-1k, which has the
    first alone. Raises UserError, naming `flag`, where timm, which lists them, is not installed.
    """
    if len(names) != 1000 or names != imagenet_categories():
        return names
    words = _timm_words("imagenet-1k")
    if not words:
        choices = 'pip install "dfkd-fast[timm]", or give --class-names FILE or --prompt P2'
        raise UserError(f"{flag}: ImageNet-1k's names with their synonyms are listed by timm; {choices}")
    return tuple(words.values())


def _timm_words(subset: str) -> dict[str, str]:
    """WordNet id -> words, for the classes of one of timm's subsets of ImageNet, in their order; empty without timm."""
    ensure_importable()
    try:
        timm: Any = importlib.import_module("timm.data")
    except ImportError:
        return {}
    found: dict[str, str] = timm.ImageNetInfo(subset).label_descriptions(as_dict=True)
    return found
