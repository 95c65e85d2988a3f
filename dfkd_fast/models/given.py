"""Networks that are given in Python, as modules: a text stands for each, so that a config and a header can name it.

`given:Net@1a2b3c4d5e6f` is a Net whose tensors have that SHA-256, as they were when it was given. It is known in the
process where it was given, and nowhere else.
"""

from __future__ import annotations

import copy

from torch import nn

from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import of_json, of_tensors

PREFIX = "given"
_GIVEN: dict[str, nn.Module] = {}


def give(module: nn.Module) -> str:
    """The text that stands for a module from now on, a copy of which is kept as it is now: by its class's name and a
    hash of the class's full name and of all its tensors.
    """
    kind = type(module)
    content = [f"{kind.__module__}.{kind.__qualname__}", of_tensors(module.state_dict())]
    spec = f"{PREFIX}:{kind.__name__}@{of_json(content)[:12]}"
    _GIVEN[spec] = copy.deepcopy(module).cpu().float()
    return spec


def is_given(spec: str) -> bool:
    """Whether a spec stands for such a module."""
    return spec.partition(":")[0] == PREFIX


def given_network(spec: str, flag: str) -> nn.Module:
    """A copy of the module that a spec stands for. Raises UserError, naming `flag`, in another process."""
    if spec not in _GIVEN:
        known = spec.partition(":")[2].replace("@", ", hash ")
        raise UserError(
            f"{flag} {spec}: is a module that was given in Python ({known}); give the same one there again, or name "
            "its code as FILE.py:NAME"
        )
    return copy.deepcopy(_GIVEN[spec])
