"""How many classes a weights file is for, where nobody says so: the shape of its last layer tells."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dfkd_fast.errors import unknown
from dfkd_fast.models.entries import Entry
from dfkd_fast.models.filling import place_key
from dfkd_fast.models.fitting import Fit, readings
from dfkd_fast.models.weights import Weights


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
        counted = [(fit, count) for fit in fits if (count := _count(own, fit, built_for)) is not None]
        whole = [(place_key(entry, fit), count) for fit, count in counted if not fit.missing]
        if whole:
            return whole
        best = best or [(place_key(entry, fit), count) for fit, count in counted]
    return best


def _count(own: Mapping[str, Tensor], fit: Fit, built_for: int) -> int | None:
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
