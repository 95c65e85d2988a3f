"""The logits in what a network answers: a tensor, or a dict, tuple or ModelOutput that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx


def logits_of(answer: Any) -> tuple[Any, str]:
    """The logits, a tensor or the torch.fx value that stands for one, and a note where they had to be chosen.

    Raises:
        ValueError: there is no tensor, or several under names of which none is `logits`.
    """
    if isinstance(answer, fx.Node) and isinstance(answer.target, type):
        # torch.fx makes named tuples and dataclasses by a call
        fields = getattr(answer.target, "_fields", ())
        return logits_of({**dict(zip(fields, answer.args, strict=False)), **answer.kwargs})
    if isinstance(answer, Tensor | fx.Node | fx.Proxy):
        return answer, ""
    if isinstance(answer, Mapping):
        named = dict(answer)
    elif isinstance(answer, tuple | list) and not hasattr(answer, "_fields"):
        found = [value for value in answer if isinstance(value, Tensor | fx.Node | fx.Proxy)]
        note = f"network: answers {len(answer)} values, of which the first tensor is taken as the logits"
        if found:
            return found[0], note if len(answer) > 1 else ""
        named = {}
    else:  # a named tuple, or an object such as transformers' ModelOutput
        named = getattr(answer, "__dict__", None) or getattr(answer, "_asdict", dict)()
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor | fx.Node | fx.Proxy)}
    if "logits" in tensors:
        return tensors["logits"], ""
    if len(tensors) == 1:
        return next(iter(tensors.values())), ""
    held = f"holds {', '.join(map(str, tensors))}" if tensors else "holds no tensor"
    raise ValueError(f"model: its answer, a {type(answer).__name__}, {held}; expected logits (B, K)")
