"""An inner optimisation: what a method declares once and runs in its rounds, however the run drives it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from dfkd_fast.methods.exchange import LossTerms
from dfkd_fast.methods.recipe import MethodConfig
from dfkd_fast.optim import OptimizerSpec

Groups = Callable[[], Sequence[dict[str, Any]]]
"""parameter groups, each with its own "lr"; asked for once, when the method lies where it stays"""

LrScale = float | Callable[[int], float]
"""factor on the learning rates: one for the run, or one for each step (0-based)"""

Variant = Mapping[str, Hashable]
"""the keyword arguments of a step"""

VariantKey = tuple[tuple[str, Hashable], ...]
"""the same, in the order of their names: steps of equal keys do the same"""


def parameters_of(module: nn.Module, lr: float, **more: Any) -> Groups:
    """All parameters of a module as one group, with a learning rate and whatever else is Adam's (betas, say)."""
    return lambda: [{"params": [*module.parameters()], "lr": lr, **more}]


def key_of(variant: Variant) -> VariantKey:
    """The key of a step's keyword arguments."""
    return tuple(sorted(variant.items()))


class Engine(Protocol):
    """What drives an inner optimisation: a run's loop, a dry run's clock, a counter of FLOPs."""

    def run(self, steps: int, lr_scale: LrScale, variant: Variant) -> Any:
        """See `Inner.run`."""

    def inference(self) -> AbstractContextManager[Any]:
        """See `Inner.inference`."""


class Inner:
    """Steps of Adam on the loss of `step`.

    `step(**variant)` returns what it made, a tree of tensors whose first is the images (B, C, H, W), and its loss
    terms, weighted by `config`. It is a pure function of device tensors: static shapes, no host synchronisation, no
    optimiser, so that it can be captured, once for each set of keyword arguments.

    `groups` start anew with each run: their Adam's state is reset in place. `lasting` groups keep theirs over all
    runs, and it is saved. `after` is called after each optimiser step, on the device. `shared`: one set of weights for
    all ranks, whose gradients are averaged in each step; else each rank has its own.
    """

    engine: Engine | None = None

    def __init__(
        self,
        config: MethodConfig,
        step: Callable[..., tuple[Any, LossTerms]],
        groups: Groups | None = None,
        *,
        lasting: Groups | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        after: Callable[[], None] | None = None,
        shared: bool = False,
    ) -> None:
        self.config, self.step, self.after, self.shared = config, step, after, shared
        self._groups, self._lasting, self._betas = groups, lasting, betas

    def run(self, steps: int, *, lr_scale: LrScale = 1.0, **variant: Hashable) -> Any:
        """Take so many steps and return what the one of the lowest loss made (`select_iterate = "last"`: the last one).

        The tensors are the engine's and are overwritten by the next run; without gradients.
        """
        return self._driven().run(steps, lr_scale, variant)

    def inference(self) -> AbstractContextManager[Any]:
        """Without gradients, in the precision of the steps. Never around a `yield`: the loop would be in it, too."""
        return self._driven().inference()

    def optimizers(self) -> tuple[OptimizerSpec | None, OptimizerSpec | None]:
        """The Adam that starts anew with each run, and the one that lasts; None where there is none."""
        fresh, lasting = (
            None if groups is None else OptimizerSpec(kind="adam", groups=groups(), betas=self._betas)
            for groups in (self._groups, self._lasting)
        )
        return fresh, lasting

    def _driven(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("nothing drives this inner optimisation: bind an engine, as `training.inner` does")
        return self.engine


def inners(method: nn.Module) -> Iterator[Inner]:
    """The inner optimisations of a method, then of its parts in the order of `Module.modules`; of each in the order of
    its attributes. Checkpoints number lasting optimisers by it.
    """
    for module in method.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Inner))


def images_of(made: Any) -> Tensor:
    """The images of what a step made."""
    while not isinstance(made, Tensor):
        made = made[0]
    return made
