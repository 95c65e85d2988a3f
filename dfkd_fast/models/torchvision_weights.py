"""Which of a torchvision network's published weights are meant: `tv:resnet50@IMAGENET1K_V2`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dfkd_fast.errors import UserError, one_of


def chosen_weights(published: Iterable[Any], choice: str, setting: str) -> Any:
    """The weights called `choice`; without one the first that were published.

    Those are what most papers distil from: a later recipe is another teacher. `published`: torchvision's enumeration
    of a network's weights. Raises UserError, which begins with `setting`, for a name that is not among them.
    """
    known = {weights.name: weights for weights in published}
    if choice and choice not in known:
        raise UserError(f"{setting}: torchvision has no such weights; choose {one_of(f'@{name}' for name in known)}")
    return known[choice] if choice else next(iter(known.values()))


def described_weights(published: Iterable[Any], chosen: Any) -> str:
    """Their name, published top-1 and the size that test images were scaled to, and which others there are."""
    others = [f"@{weights.name}{_top1(weights)}" for weights in published if weights is not chosen]
    also = f"; there is {one_of(others)}, too" if others else ""
    return f"torchvision's {chosen.name}{_top1(chosen, scaled=True)}{also}"


def _top1(weights: Any, *, scaled: bool = False) -> str:
    top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    if top1 is None:
        return ""
    short_side = weights.transforms().resize_size[0]
    return f" ({top1:.2f} %, test images scaled to {short_side})" if scaled else f" ({top1:.2f} %)"
