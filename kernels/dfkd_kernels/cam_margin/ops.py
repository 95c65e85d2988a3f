"""`cam_margin_loss`: raise the class activation map of the pseudo-label up to a target."""

from typing import Literal

from torch import Tensor

from . import reference

Reduction = Literal["none", "mean", "sum"]


def cam_margin_loss(
    features: Tensor, class_weights: Tensor, labels: Tensor, target: float | Tensor = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """max(0, target - M), M the class activation map of each sample's label (Tran et al., MUSE, the CAM loss).

    `features` (B, K, h, w) is the last feature map before pooling, `class_weights` (N, K) the classifier's weight,
    taken as a constant, `labels` (B,) int64 in [0, N). M[b] = sum_k class_weights[labels[b], k] * features[b, k],
    without bias, ReLU or resizing. `target` is a number or a map (h, w). The gradient goes to `features` only; it is
    0 where M >= target. Returns the mean or sum over samples and pixels, or with "none" the map (B, h, w), in float32
    (float64 for float64 features). Raises ValueError naming the argument that is wrong.
    """
    _check(features, class_weights, labels, target)
    margins = reference.cam_margins(features, class_weights, labels, target)
    return _reduce(margins, reduction)


def _check(features: Tensor, class_weights: Tensor, labels: Tensor, target: float | Tensor) -> None:
    if features.ndim != 4 or features.numel() == 0 or not features.is_floating_point():
        raise ValueError(
            f"features: a non-empty float (B, K, h, w) needed, not {features.dtype} {tuple(features.shape)}"
        )
    if class_weights.ndim != 2 or class_weights.shape[1] != features.shape[1] or not class_weights.is_floating_point():
        raise ValueError(
            f"class_weights: float (classes, {features.shape[1]}) needed, "
            f"not {class_weights.dtype} {tuple(class_weights.shape)}"
        )
    if labels.shape != features.shape[:1] or labels.dtype.is_floating_point:
        raise ValueError(f"labels: int64 ({features.shape[0]},) needed, not {labels.dtype} {tuple(labels.shape)}")
    if isinstance(target, Tensor) and target.shape not in (features.shape[2:], ()):
        raise ValueError(f"target: a number or a map {tuple(features.shape[2:])} needed, not {tuple(target.shape)}")


def _reduce(margins: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return margins
    if reduction == "sum":
        return margins.sum()
    if reduction == "mean":
        return margins.mean()
    raise ValueError(f"reduction: {reduction!r}; choose none, mean or sum")
