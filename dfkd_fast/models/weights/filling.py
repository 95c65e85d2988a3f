"""Filling a network from a weights file: which of its dicts is meant, under which prefix, for how many classes, and
what is left over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd_fast.errors import UserError, unknown
from dfkd_fast.messages.notes import note
from dfkd_fast.models.weights.contents import WHOLE, Entry, is_averaged
from dfkd_fast.models.weights.fitting import Fit, find_fits, listed, readings
from dfkd_fast.models.weights.read import Weights, check_numbers, load_weights


class _Place(NamedTuple):
    """Where in a file a network's names and shapes are."""

    entry: Entry
    fit: Fit

    @property
    def key(self) -> str:
        """What `--teacher-weights-key` calls it."""
        return place_key(self.entry, self.fit)


def place_key(entry: Entry, fit: Fit) -> str:
    """What `--teacher-weights-key` calls a network in a file: the dict's key, and the prefix within the dict."""
    whole, prefix = entry.key == WHOLE, fit.prefix.rstrip(".")
    return prefix or WHOLE if whole else f"{entry.key}.{prefix}".rstrip(".")


def fill(model: nn.Module, weights: Weights, *, name: str, blank: Tensor, key: str | None = None) -> None:
    """Copy a file's weights into `model`; `name` says in messages what it is.

    Of the file's dicts, the one whose names and shapes are the network's is taken; of a raw and an averaged one (EMA)
    the averaged one; else `key` (`--teacher-weights-key`) must choose. Parts of the network that do not count in
    evaluation (auxiliary classifiers) may be missing: whether they count is seen on `blank` (1, C, H, W). What was
    guessed, and what is left over, is printed.

    Raises UserError, naming the file's flag, where nothing fits, or too much does.
    """
    keyed = [entry for entry in weights.entries if entry.key == key]
    entries = keyed or weights.entries
    found = {place.key: place for entry in entries for place in _places(model, entry, blank)}
    if not found and (keyed or key is None):
        raise _nothing_fits(model, weights, entries, name)
    if key is not None and not keyed and key not in found:
        raise unknown(weights.key_flag, key, dict.fromkeys([*found, *(entry.key for entry in weights.entries)]))
    chosen = found[key if key in found and not keyed else weights.choose(list(found))]
    fit = chosen.fit
    check_numbers(fit.tensors, f"{weights.flag} {weights.path}")
    load_weights(model, fit.tensors, name=name, path=weights.path, flag=weights.flag, spare=fit.missing)
    for line in _report(weights, chosen, [other for other in found if other != chosen.key]):
        note(f"{weights.flag} {weights.path}: {line}")


def _places(model: nn.Module, entry: Entry, blank: Tensor) -> Iterator[_Place]:
    """Everything in a dict that fits."""
    for fit in find_fits(model.state_dict(), entry.tensors):
        few = len(fit.missing) <= len(fit.tensors)  # else nobody would call it this network's file
        fits = not fit.misfits and not fit.strange
        if fits and few and (not fit.missing or not _count(model, fit.missing, blank)):
            yield _Place(entry, fit)


@torch.no_grad()
def _count(model: nn.Module, names: Sequence[str], blank: Tensor) -> bool:
    """Whether these of a network's tensors count in evaluation: with NaN in them, is there any in the logits?"""
    own = model.state_dict()
    kept = {name: own[name].clone() for name in names}
    if not all(value.is_floating_point() for value in kept.values()):
        return True
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        for name in names:
            own[name].fill_(torch.nan)
        logits = model(blank)
        return not isinstance(logits, Tensor) or not bool(logits.isfinite().all())
    except Exception:  # the network's own code, on images that it may not take: then nothing is known
        return True
    finally:
        for name, value in kept.items():
            own[name].copy_(value)
        for part in training:
            part.training = True


def _nothing_fits(model: nn.Module, weights: Weights, entries: Sequence[Entry], name: str) -> UserError:
    """What the nearest of the file's dicts lacks, and what else it holds."""
    own = model.state_dict()
    nearest = min(entries, key=lambda entry: len(find_fits(own, entry.tensors)[0].missing))
    (fit,) = find_fits(own, nearest.tensors)
    try:
        load_weights(model, fit.tensors | fit.strange, name=name, path=weights.path, flag=weights.flag)
    except UserError as error:
        others = [entry.key for entry in weights.entries if entry is not nearest]
        beside = f"; this is its {nearest.key}, the nearest of {len(others) + 1} dicts of tensors" if others else ""
        return UserError(f"{error}{beside}")
    raise AssertionError("what does not fit has been loaded")


def _report(weights: Weights, chosen: _Place, others: Sequence[str]) -> Iterator[str]:
    """What was guessed, and what is left over."""
    fit = chosen.fit
    unfit = [entry.key for entry in weights.entries if entry is not chosen.entry]
    if others:
        what = "the averaged weights, " if is_averaged(chosen.key) else ""
        yield f"takes {what}{chosen.key}, not {listed(others)}; {weights.key_flag} chooses"
    elif unfit:
        yield f"takes {chosen.key}, not {listed(unfit)}, which would not fit or were not asked for"
    if not fit.is_plain and not others:
        yield f"takes its names without {fit.prefix.rstrip('.')}"
    left = (*fit.left, *chosen.entry.others)
    if left:
        yield f"{len(left)} entries are left over: {listed(left)}"
    if fit.missing:
        yield f"lacks {len(fit.missing)} entries that no answer depends on: {listed(fit.missing)}"


def classes_in(
    weights: Weights, model: nn.Module, built_for: int, key: str | None = None, *, is_stated: bool = False
) -> int | None:
    """The classes of the network in a file, by a network of its kind that was built for any number of them.

    It is known where the file fits but for tensors whose first side is the number of classes in both. `key`
    (`--teacher-weights-key`) chooses among the file's dicts and the networks in one of them; of several networks
    for different numbers, that for `built_for` is meant where `is_stated`. None where nothing fits.

    Raises UserError, with the list and the flag, where several are left, and where none of them is called `key`.
    """
    keyed = [entry for entry in weights.entries if entry.key == key]
    own = model.state_dict()
    found = {place: count for entry in keyed or weights.entries for place, count in _counts(own, entry, built_for)}
    if key in found and not keyed:
        return found[key]
    counts = set(found.values())
    if len(counts) < 2:
        return counts.pop() if counts else None
    if is_stated and built_for in counts:
        return built_for
    if key is not None and not keyed:
        raise unknown(weights.key_flag, key, dict.fromkeys([*found, *(entry.key for entry in weights.entries)]))
    return found[weights.choose(list(found))]


def _counts(own: Mapping[str, Tensor], entry: Entry, built_for: int) -> list[tuple[str, int]]:
    """What `--teacher-weights-key` calls each network in a dict, and its classes; whole ones before all others."""
    best: list[tuple[str, int]] = []
    for fits in readings(own, entry.tensors):
        counted = [(fit, count) for fit in fits if (count := _classes(own, fit, built_for)) is not None]
        whole = [(place_key(entry, fit), count) for fit, count in counted if not fit.missing]
        if whole:
            return whole
        best = best or [(place_key(entry, fit), count) for fit, count in counted]
    return best


def _classes(own: Mapping[str, Tensor], fit: Fit, built_for: int) -> int | None:
    """The classes, where a reading fits but for their number."""
    if fit.strange or len(fit.missing) > len(fit.tensors):
        return None
    pairs = [(own[name], fit.tensors[name]) for name in fit.misfits]
    if not all(_differ_in_classes(wanted, found, built_for) for wanted, found in pairs):
        return None
    counts = {found.shape[0] for _, found in pairs} or {built_for}
    return counts.pop() if len(counts) == 1 else None


def _differ_in_classes(wanted: Tensor, found: Tensor, built_for: int) -> bool:
    return (
        wanted.dim() > 0
        and found.dim() == wanted.dim()
        and wanted.shape[0] == built_for
        and (wanted.shape[1:] == found.shape[1:])
    )
