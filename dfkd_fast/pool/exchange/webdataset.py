"""WebDataset shards: tars in which the files of one sample follow each other under one name.

Names are split as the webdataset package does, at the first dot behind the last slash. That package's own reader passes
over what it cannot parse, and takes files of a sample that lie apart for two samples; here either is an error, and all
shards are looked through before the first image is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfkd_fast.errors import UserError
from dfkd_fast.files.archives import InTar, read_places, tar_sequence
from dfkd_fast.files.trees import PICTURE_SUFFIXES, is_hidden
from dfkd_fast.messages.notes import note, printable

_SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_NUMBER = re.compile(rb"\s*(-?\d{1,10})\s*")
LARGEST_LABEL = 2**31 - 1


class Sample(NamedTuple):
    """Where a shard has one sample."""

    picture: str
    """its file's name"""
    place: InTar
    label: InTar | None


def find_samples(shards: Sequence[Path], source: Path) -> dict[Path, list[Sample]]:
    """The samples of each shard in their order.

    Raises UserError for a sample without a picture or with two, whose files lie apart, or that alone has no label.
    """
    found = {shard: _samples(shard) for shard in shards}
    everything = [(shard, sample) for shard, samples in found.items() for sample in samples]
    labelled = [sample.label is not None for _, sample in everything]
    if any(labelled) and not all(labelled):
        shard, sample = everything[labelled.index(False)]
        raise UserError(f"import {shard}: {printable(sample.picture)} has no .cls, others have; label all or none")
    if everything and not any(labelled):
        note(f"import {printable(source)}: no .cls beside any picture; the images have no labels (-1)")
    return found


def read_samples(shard: Path, samples: Sequence[Sample]) -> Iterator[tuple[str, bytes, int]]:
    """Name, picture file and label (-1: none) of each sample."""
    places = [place for sample in samples for place in (sample.place, sample.label) if place is not None]
    step = 1 if len(places) == len(samples) else 2
    waiting: dict[int, bytes | Path] = {}
    done = 0
    for position, content in read_places(shard, places, f"import {shard}"):  # in their order, but for links
        waiting[position] = content
        while all(step * done + part in waiting for part in range(step)) and done < len(samples):
            picture, *label = (waiting.pop(step * done + part) for part in range(step))
            assert isinstance(picture, bytes)
            yield samples[done].picture, picture, _label(label[0], shard) if label else -1
            done += 1


def _label(content: bytes | Path, shard: Path) -> int:
    assert isinstance(content, bytes)
    number = _NUMBER.fullmatch(content)
    if number is None or not -1 <= int(number[1]) <= LARGEST_LABEL:
        raise UserError(f"import {shard}: class {content[:40]!r} is not a number")
    return int(number[1])


def _samples(shard: Path) -> list[Sample]:
    parts: dict[str, InTar] = {}
    samples: list[Sample] = []
    seen: set[str] = set()
    current, passed = "", 0
    for name, place in tar_sequence(shard, f"import {shard}"):
        match = _SAMPLE.fullmatch(name)
        base = PurePosixPath(name).name
        if match is None or is_hidden(name) or base.startswith("__"):  # webdataset's own notes are called __x__
            passed += 1
            continue
        key, ending = match[1], match[2].lower()
        if key != current:
            if key in seen:
                raise UserError(f"import {shard}: the files of sample {printable(key)} lie apart; sort the tar by name")
            if parts:
                samples.append(_sample(shard, current, parts))
            seen.add(key)
            current, parts = key, {}
        if ending in parts:
            raise UserError(f"import {shard}: sample {printable(key)} has two files .{printable(ending)}")
        parts[ending] = place
    if parts:
        samples.append(_sample(shard, current, parts))
    if passed:
        note(f"import {printable(shard)}: passed over {passed:,} files that belong to no sample")
    return samples


def _sample(shard: Path, key: str, parts: dict[str, InTar]) -> Sample:
    pictures = [ending for ending in parts if f".{ending.rpartition('.')[2]}" in PICTURE_SUFFIXES]
    labels = [ending for ending in parts if ending.rpartition(".")[2] == "cls"]
    what = f"import {shard}: sample {printable(key)}"
    for kind, endings in {"pictures": pictures, "labels": labels}.items():
        if len(endings) > 1:
            held = ", ".join(f".{ending}" for ending in endings[:3])
            raise UserError(f"{what} has {len(endings)} {kind} ({printable(held)}); names end at their first dot")
    if not pictures:
        held = ", ".join(f".{ending}" for ending in list(parts)[:3])
        raise UserError(f"{what} has no picture, only {printable(held)}")
    return Sample(f"{key}.{pictures[0]}", parts[pictures[0]], parts[labels[0]] if labels else None)
