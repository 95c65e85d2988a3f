"""A zoo network's checkpoint, found or fetched; whatever its place, it is taken only with the SHA-256 of its card."""

from __future__ import annotations

import os
from http.client import HTTPException
from pathlib import Path

import torch

from dfkd_fast.errors import UserError
from dfkd_fast.files.cache import cache_folder
from dfkd_fast.files.digests import of_file
from dfkd_fast.files.write import make_folder
from dfkd_fast.messages.notes import note
from dfkd_fast.models.zoo.cards import Card, card_of

VARIABLE = "DFKD_FAST_ZOO"
"""environment variable that names a folder with files of the zoo"""


def find_file(card: Card) -> Path | None:
    """The first place that has a file of the card's name, unread; None where it would have to be fetched."""
    folder = os.environ.get(VARIABLE)
    places = (Path(__file__).parent, *([Path(folder)] if folder else []), cache_folder("zoo"))
    return next((place / card.file for place in places if (place / card.file).is_file()), None)


def zoo_file(spec: str, flag: str) -> Path:
    """The checkpoint of `zoo:NAME`, fetched into the cache where no folder has it; its SHA-256 is the card's.

    Raises UserError, naming `flag`: for an unknown name, a file that is another, and one that cannot be had.
    """
    card = card_of(spec, flag)
    path = find_file(card)
    if path is None:
        return _fetched(card, f"{flag} {spec}")
    try:
        found = of_file(path)
    except OSError as error:
        raise UserError(f"{flag} {spec}: {path} cannot be read ({error.strerror})") from error
    if found != card.sha256:
        raise UserError(
            f"{flag} {spec}: {path} is not the published file (its SHA-256 is {found[:8]}..., not "
            f"{card.sha256[:8]}...); delete it, or put the right one there"
        )
    return path


def _fetched(card: Card, setting: str) -> Path:
    """The file from where it was published, whole and checked, or not at all."""
    path = cache_folder("zoo") / card.file
    note(f"{setting}: fetches {card.url}")
    try:
        make_folder(path.parent)
        torch.hub.download_url_to_file(card.url, str(path), hash_prefix=card.sha256, progress=False)
    except (OSError, RuntimeError, HTTPException) as error:  # no network; other bytes; an answer that breaks off
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        folder = os.environ.get(VARIABLE)
        searched = f"{folder} ({VARIABLE})" if folder else f"a folder that {VARIABLE} names (it is not set)"
        raise UserError(
            f"{setting}: {card.file} is not in {searched}, and cannot be fetched from {card.url} ({reason}); put it "
            f"into a folder and name that by {VARIABLE}"
        ) from error
    return path
