"""The network that is saved and evaluated: the student, with the method's head where that is part of it."""

from __future__ import annotations

from torch import nn

from dfkd_fast.methods.base import Method
from dfkd_fast.methods.exchange import DeployedHead


def deployed(method: Method, student: nn.Module) -> nn.Module:
    """That network, as it is now."""
    head = method.student_head()
    return head.deploy(student) if isinstance(head, DeployedHead) else student


def deployed_name(method: Method, student: str) -> str:
    """What `load_model` calls it, where the student's own name is `student`."""
    head = method.student_head()
    return head.deployed_name(student) if isinstance(head, DeployedHead) else student
