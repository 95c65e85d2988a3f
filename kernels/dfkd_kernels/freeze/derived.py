"""Base of the frozen layers: tensors derived from a layer's own, and the test that a layer may be replaced at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class DerivedLayer(nn.Module):
    """A layer that keeps tensors computed from its own: whatever changes those from outside renews them."""

    def _derive(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DerivedLayer:
        super()._apply(fn, recurse)
        self._derive()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._derive()


def has_hooks(layer: nn.Module) -> bool:
    """Whether someone has attached forward hooks, which may change what the layer computes."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)
