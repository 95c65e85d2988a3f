"""Modules that another module refers to without owning them."""

from __future__ import annotations

from typing import TypeVarTuple

Modules = TypeVarTuple("Modules")


def unregistered(*modules: *Modules) -> tuple[*Modules]:
    """The same modules as a tuple, which nn.Module does not look into when it is set as an attribute.

    The holder then calls them and gradients flow through them, but it neither registers, moves, saves nor trains them:
    `parameters()` and `state_dict()` do not have them. Whoever else holds them does that.
    """
    return modules
