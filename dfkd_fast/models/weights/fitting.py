"""Match a file's names to a network's: strip wrappers' prefixes, and show the difference where they do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # that rename anywhere
_QUIET = ("module", "_orig_mod", "model")
"""prefixes that training scripts put on as a matter of course"""
_COUNTER = "num_batches_tracked"
_PROFILED = ("total_ops", "total_params")  # thop leaves them in every layer
_SHOWN = 3
_ANCHORS = 4  # names of a network, from each end, that a prefix is looked for at
_TRIED = 50  # path parts that only the file has, each tried as a prefix


class Fit(NamedTuple):
    """A file's tensors by a network's names."""

    tensors: dict[str, Tensor]
    prefix: str
    """what was taken off their names, `model.`; with inner parts `features.module.` as `module.`"""
    left: tuple[str, ...]
    """the file's other names"""
    missing: tuple[str, ...]
    """the network's names that the file lacks, BatchNorm's batch counters apart"""
    misfits: tuple[str, ...]
    """the network's names whose shape or type is another"""
    strange: dict[str, Tensor]
    """what the file has under the prefix and the network does not"""

    @property
    def is_whole(self) -> bool:
        """Whether the file fills the network, and has nothing in its place that does not belong there."""
        return not self.missing and not self.misfits and not self.strange

    @property
    def is_plain(self) -> bool:
        """Whether the prefix needs no word: the common wrappers' or none."""
        return all(part in _QUIET for part in self.prefix.split(".") if part)


def find_fits(network: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> list[Fit]:
    """The ways to read a network's tensors out of a file's, the best first, those that fit whole before all others.

    Tried are the names as they are, without the wrappers' parts wherever they stand, and without any other part that
    only the file's names have; each time with what stands before the network's own names taken off. Several whole fits
    are several networks in one dict.
    """
    best: list[Fit] = []
    for fits in readings(network, file):
        whole = [fit for fit in fits if fit.is_whole]
        if whole:
            return whole
        best += fits
    return sorted(best, key=lambda fit: (len(fit.missing) + len(fit.misfits), len(fit.strange), len(fit.prefix)))[:1]


def readings(network: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> Iterator[list[Fit]]:
    """All ways that `find_fits` tries, those without the same parts of the names together."""
    for names, taken in _variants(network, file):
        yield [_fit(network, names, prefix, taken) for prefix in _prefixes(network, names)]


def difference(network: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> str:
    """Say in one line how a file's tensors differ from a network's, in names, shapes and types; empty when they fit."""
    missing = [key for key in network if key not in file and not _is_counter(key)]
    unexpected = [key for key in file if key not in network]
    common = [key for key in network if key in file]
    reshaped = [
        f"{key} {_shape(file[key])} instead of {_shape(network[key])}"
        for key in common
        if file[key].shape != network[key].shape
    ]
    retyped = [f"{key} {_dtype(file[key])}" for key in common if not _is_kind(network[key], file[key])]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped, "of another type": retyped}
    return "; ".join(f"{len(keys)} {what}: {listed(keys)}" for what, keys in parts.items() if keys)


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _variants(network: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], str]]:
    """A file's tensors under names without certain parts, and which these were; names that would clash are no way."""
    yield dict(file), ""
    own = {part for name in network for part in name.split(".")}
    foreign = dict.fromkeys(part for name in file for part in name.split(".") if part not in own)
    wrappers = [part for part in _WRAPPERS if part in foreign]
    for parts in ([wrappers] if wrappers else []) + [[part] for part in list(foreign)[:_TRIED] if part not in wrappers]:
        renamed = {".".join(part for part in name.split(".") if part not in parts): name for name in file}
        if len(renamed) == len(file):
            yield {name: file[old] for name, old in renamed.items()}, "".join(f"{part}." for part in parts)


def _prefixes(network: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> list[str]:
    """What may stand before a network's names in a file."""
    own = [name for name in network if not _is_counter(name)]
    found = {"": None}
    for anchor in (*own[:_ANCHORS], *own[-_ANCHORS:]):
        for name in names:
            if name.endswith(f".{anchor}"):
                found[name.removesuffix(anchor)] = None
    return list(found)


def _fit(network: Mapping[str, Tensor], names: Mapping[str, Tensor], prefix: str, taken: str) -> Fit:
    inside = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
    left = [name for name in names if not name.startswith(prefix)]
    left += [prefix + name for name in inside if name not in network and _is_harmless(name)]
    found = {name: value for name, value in inside.items() if name in network}
    strange = {name: value for name, value in inside.items() if name not in network and not _is_harmless(name)}
    misfits = tuple(name for name, value in found.items() if not _is_like(network[name], value))
    missing = tuple(name for name in network if name not in found and not _is_counter(name))
    return Fit(found, taken + prefix, tuple(left), missing, misfits, strange)


def _is_counter(name: str) -> bool:
    """Files older than PyTorch 0.4.1 lack the BN batch counters; load_state_dict starts them at zero."""
    return name.rpartition(".")[2] == _COUNTER


def _is_harmless(name: str) -> bool:
    """Names beyond a network's own that change none of its answers: counters, and heads for the training alone."""
    return name.rpartition(".")[2] in (_COUNTER, *_PROFILED) or name.lower().startswith("aux")


def _is_like(wanted: Tensor, found: Tensor) -> bool:
    return wanted.shape == found.shape and _is_kind(wanted, found)


def _is_kind(wanted: Tensor, found: Tensor) -> bool:
    """Whether numbers of the one type can stand for the other's: floats of at least 16 bits for floats."""
    if not wanted.is_floating_point():
        return not found.is_complex()
    return found.is_floating_point() and found.itemsize > 1


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
