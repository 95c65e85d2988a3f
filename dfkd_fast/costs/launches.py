"""Kernel launches of an operator on a GPU, and the bytes they move: counted from its schema and its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

NONE = frozenset(
    f"aten::{name}"
    for name in [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "alias",
        "as_strided",
        "as_strided_",
        "chunk",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "lift_fresh",
        "mT",
        "new_empty",
        "new_empty_strided",
        "permute",
        "resize_",
        "select",
        "set_",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "squeeze_",
        "t",
        "t_",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "unsqueeze_",
        "view_as_real",
    ]
)
"""operators that launch nothing: another look at the same memory, or memory alone"""
PER_CAT = 128
"""tensors that one launch of torch.cat takes"""
PER_FOREACH = 100
"""tensors of a list that one foreach or fused optimiser launch takes, about: their pointers are its arguments"""
TWO = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "cudnn_batch_norm",
    "bn_act_moments_forward",
    "batch_moments_forward",
)
"""statistics, then what is made of them; or one pass, then the sum of its parts"""


def launches(name: str, args: Sequence[Any], given: Sequence[Tensor]) -> int:
    """Kernels of one call: an estimate, the same one for every version of our code."""
    op = name.partition("::")[2]
    if op.startswith(("_foreach", "_fused_", "_amp_")):
        lists = [len(argument) for argument in args if isinstance(argument, list | tuple)]
        return max(1, -(-max(lists, default=1) // PER_FOREACH))
    if op == "cat":
        return -(-len(given) // PER_CAT)
    if op == "bn_stat_loss":  # one concatenation of all vectors, one of the counts, the kernel, the sum over layers
        return -(-len(given) // PER_CAT) + 3
    if op == "convolution_backward":  # of input, weight and bias those that are asked for
        return sum(args[-1])
    return 2 if op in TWO else 1


def moved(given: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """Bytes of all tensors that a call reads or writes, each once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in (*given, *made)}.values())


def is_launch(name: str, schema: torch.FunctionSchema, made: Sequence[Tensor], fresh: Sequence[Tensor]) -> bool:
    """Whether a call launches anything: it makes a tensor with memory of its own, or writes to one."""
    return name not in NONE and (bool(fresh) or schema.is_mutable)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments or results of an operator, which are they or lists of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


def memory_of(tensor: Tensor) -> int:
    """Which memory it is in: the same number for all views of it."""
    return tensor.untyped_storage()._cdata
