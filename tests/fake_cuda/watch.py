"""A dispatch mode that sees what a run asks of its GPU, and notes what a card would refuse, wait for or get wrong."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_fast.costs.launches import is_launch, launches, memory_of, moved, tensors_in

SYNCS = frozenset(
    f"aten::{name}"
    for name in [
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "unique_dim",
        "_unique2",
        "unique_consecutive",
        "equal",
        "allclose",
        "bincount",
        "histc",
        "multinomial",
        "median",
        "linalg_eigh",
        "_linalg_svd",
        "_linalg_det",
        "linalg_qr",
        "linalg_inv_ex",
    ]
)
"""operators whose shape, or success, depends on values: the host waits for the device, and a capture fails"""
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
COPIES = ("aten::_to_copy", "aten::copy_", "aten::copy", "aten::_copy_from")
WITHOUT_FAKE = ("aten::_fused_adam", "aten::_fused_sgd")
"""in place, and without a form for fake learning rates"""
OURS = ("/dfkd_fast/", "/dfkd_kernels/")


class Finding(NamedTuple):
    """Something that a card would not have done, or not without waiting."""

    kind: str
    where: str
    """the captured step, or empty"""
    what: str
    site: str
    """file and function of ours that asked for it"""


class Watch(TorchDispatchMode):
    """Notes findings everywhere, and kernels and bytes of captured steps."""

    def __init__(self) -> None:
        super().__init__()
        self.step = ""
        """what is being captured"""
        self.capturing = False
        self.findings: Counter[Finding] = Counter()
        self.kernels: dict[str, Counter[str]] = defaultdict(Counter)
        self.bytes: Counter[str] = Counter()
        self._made: list[tuple[weakref.ref[Tensor], str, str]] = []

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """In the place of `torch.cuda.graph`."""
        self._made.clear()
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def check_lifetimes(self, kept: Sequence[Tensor]) -> None:
        """Note what the last captured step made and somebody still holds, but for `kept` and gradients.

        Its memory is the graph's, which the next replay of any graph of the same pool may write over.
        """
        gc.collect()
        gradients = [o.grad for o in gc.get_objects() if isinstance(o, Tensor) and o.is_leaf and o.grad is not None]
        known = {memory_of(tensor) for tensor in (*kept, *gradients)}
        for reference, what, site in self._made:
            tensor = reference()
            if tensor is not None and memory_of(tensor) not in known:
                self._add("outlives its graph", f"{what} {tuple(tensor.shape)}", site)
        self._made.clear()

    def _add(self, kind: str, what: str, site: str) -> None:
        self.findings[Finding(kind, self.step, what, site)] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = tensors_in([args, *kwargs.values()])
        on_gpu = any(tensor.is_cuda for tensor in given)
        if on_gpu or torch.device(kwargs.get("device") or "cpu").type == "cuda":
            for tensor in given:  # a number that a fake tensor remembers would be computed with, on the device
                tensor.constant = None  # type: ignore[attr-defined]
        self._check_before(name, args, given, on_gpu)
        if name == "aten::_local_scalar_dense":
            dtype = given[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if name in ("aten::_pin_memory", "aten::repeat_interleave"):  # of repeats without values: as of ones
            return given[0]
        if kwargs.get("pin_memory"):  # page-locked memory is the driver's; what it holds has no values anyway
            kwargs = kwargs | {"pin_memory": False}
        results = None if name.startswith(WITHOUT_FAKE) else func(*args, **kwargs)
        if not self.capturing and name not in COPIES:
            return results
        made = tensors_in([results])
        self._check_copy(name, given, made)
        if self.capturing:
            self._check_captured(name, given, made)
            self._count(name, func._schema, args, given, made)
        return results

    def _check_before(self, name: str, args: Any, given: Sequence[Tensor], on_gpu: bool) -> None:
        if name in SYNCS and (on_gpu or self.capturing):
            self._add("host sync" if on_gpu else "value of a CPU tensor", name, site())
        if name in INDEXING and args[0].is_cuda:
            places = [place for place in args[1] if place is not None]
            if any(place.dtype in (torch.bool, torch.uint8) for place in places):
                self._add("host sync", f"{name} with a mask", site())
            if any(not place.is_cuda for place in places):
                self._add("host copy", f"{name} with an index on the CPU", site())
        if name == "aten::_pin_memory" and on_gpu:
            self._add("device mix", "a CUDA tensor cannot be pinned", site())

    def _check_copy(self, name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        if name not in COPIES or len({tensor.is_cuda for tensor in (*given, *made)}) == 1:
            return
        down = given[0].is_cuda if name == "aten::_to_copy" else not given[0].is_cuda
        if self.capturing or down:  # uploads outside of steps are how data comes
            self._add("host copy", f"{name} {'to' if down else 'from'} the CPU", site())

    def _check_captured(self, name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        on_gpu = any(tensor.is_cuda for tensor in given)
        on_cpu = [tensor for tensor in given if not tensor.is_cuda]
        if on_gpu and on_cpu and name not in COPIES + INDEXING:
            kind = "device mix" if any(tensor.dim() for tensor in on_cpu) else "CPU number in a kernel"
            self._add(kind, name, site())
        if not on_gpu and any(not tensor.is_cuda for tensor in made):
            self._add("made on the CPU", f"{name} {[tuple(tensor.shape) for tensor in made]}", site())
        if any(tensor.dtype == torch.float64 for tensor in made):
            self._add("float64", name, site())

    def _count(
        self, name: str, schema: torch.FunctionSchema, args: Any, given: Sequence[Tensor], made: Sequence[Tensor]
    ) -> None:
        before = {memory_of(tensor) for tensor in given}
        fresh = [tensor for tensor in made if memory_of(tensor) not in before]
        where = site() if fresh else ""
        self._made += [(weakref.ref(tensor), name, where) for tensor in fresh]
        if is_launch(name, schema, made, fresh):
            self.kernels[self.step][name.partition("::")[2]] += launches(name, args, given)
            self.bytes[self.step] += moved(given, made)


def site() -> str:
    """The file and function of ours that is being run, and the autograd node in a backward pass."""
    node = torch._C._current_autograd_node()
    backward = "" if node is None else f" (backward of {node.name()})"
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        for package in OURS:
            if package in file:
                function = frame.f_code.co_qualname.partition(".<locals>")[0]
                return f"{package[1:]}{file.rpartition(package)[2]}: {function}{backward}"
        frame = frame.f_back  # type: ignore[assignment]
    return f"torch{backward}"
