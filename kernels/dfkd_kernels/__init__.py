"""Operators for data-free knowledge distillation: BN statistics, CAM margin, KL, gather-augment, priorities.

Every operator has a readable reference and, where the machine allows, Triton and C++ forms; `use` chooses, `backends`
tells. The folder can be copied into another project under any name: it needs torch only.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import backends, use
    from .bn_act_moments.ops import batch_moments, bn_act_moments
    from .bn_act_moments.reference import Moments
    from .bn_act_train.ops import bn_act_train
    from .bn_stat_loss.ops import bn_stat_loss
    from .cam_margin.ops import cam_margin_loss
    from .freeze.convolution import FrozenConv2d
    from .freeze.freeze import freeze_teacher
    from .freeze.norms import StatBatchNorm2d
    from .freeze.teacher import FrozenTeacher
    from .fuse.fuse import fuse_batchnorm_, unfuse_batchnorm_
    from .fuse.norm import BatchNormAct2d
    from .gather_augment.ops import gather_augment
    from .kd_kl.ops import kd_kl, kd_kl_priority
    from .priority.ops import PrioritySampler

_HOME = {
    "BatchNormAct2d": ".fuse.norm",
    "FrozenConv2d": ".freeze.convolution",
    "FrozenTeacher": ".freeze.teacher",
    "Moments": ".bn_act_moments.reference",
    "PrioritySampler": ".priority.ops",
    "StatBatchNorm2d": ".freeze.norms",
    "backends": ".backend",
    "batch_moments": ".bn_act_moments.ops",
    "bn_act_moments": ".bn_act_moments.ops",
    "bn_act_train": ".bn_act_train.ops",
    "bn_stat_loss": ".bn_stat_loss.ops",
    "cam_margin_loss": ".cam_margin.ops",
    "freeze_teacher": ".freeze.freeze",
    "fuse_batchnorm_": ".fuse.fuse",
    "gather_augment": ".gather_augment.ops",
    "kd_kl": ".kd_kl.ops",
    "kd_kl_priority": ".kd_kl.ops",
    "unfuse_batchnorm_": ".fuse.fuse",
    "use": ".backend",
}

__all__ = [
    "BatchNormAct2d",
    "FrozenConv2d",
    "FrozenTeacher",
    "Moments",
    "PrioritySampler",
    "StatBatchNorm2d",
    "backends",
    "batch_moments",
    "bn_act_moments",
    "bn_act_train",
    "bn_stat_loss",
    "cam_margin_loss",
    "freeze_teacher",
    "fuse_batchnorm_",
    "gather_augment",
    "kd_kl",
    "kd_kl_priority",
    "unfuse_batchnorm_",
    "use",
]


def __getattr__(name: str) -> Any:
    """Load a public name's module when it is first asked for: `import dfkd_kernels` itself does no work."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOME[name], __name__)
    # all names of that module at once, so that later look-ups, also compiled ones, are plain
    globals().update({public: getattr(module, public) for public, home in _HOME.items() if home == _HOME[name]})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing a sub-package binds its name in this one. Where an operator has that name, the operator keeps it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
