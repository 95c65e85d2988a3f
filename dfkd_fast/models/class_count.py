"""How many classes a weights file is for, where nobody says so: the shape of its last layer tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from dfkd_fast.models.entries import Entry
from dfkd_fast.models.fitting import find_fits
from dfkd_fast.models.weights import Weights


def classes_in(weights: Weights, model: nn.Module, built_for: int, key: str | None = None) -> int | None:
    """The classes of the network in a file, by a network of its kind that was built for any number of them.

    It is known where the file fits but for tensors whose first side is the number of classes in both. `key`
    (`--teacher-weights-key`) chooses among the file's dicts. None where it does not fit at all, or is for several.
    """
    keyed = [entry for entry in weights.entries if entry.key == key]
    own = model.state_dict()
    found = {count for entry in keyed or weights.entries for count in _counts(own, entry, built_for)}
    return found.pop() if len(found) == 1 else None


def _counts(own: Mapping[str, Tensor], entry: Entry, built_for: int) -> Iterator[int]:
    for fit in find_fits(own, entry.tensors):
        pairs = [(own[name], fit.tensors[name]) for name in fit.misfits]
        if fit.strange or len(fit.missing) > len(fit.tensors):
            continue
        if all(_differ_in_classes(wanted, found, built_for) for wanted, found in pairs):
            counts = {found.shape[0] for _, found in pairs} or {built_for}
            yield from counts if len(counts) == 1 else ()


def _differ_in_classes(wanted: Tensor, found: Tensor, built_for: int) -> bool:
    return (
        wanted.dim() > 0
        and found.dim() == wanted.dim()
        and wanted.shape[0] == built_for
        and (wanted.shape[1:] == found.shape[1:])
    )
