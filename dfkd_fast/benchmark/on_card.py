"""`--dry-run --on CARD`: what a run would cost on a card that need not be here, said to be a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dfkd_fast.benchmark.dry_run import teacher_info
from dfkd_fast.benchmark.prediction import Prediction, predict, runtime_on
from dfkd_fast.config.sources import resolve
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.cards import read_card
from dfkd_fast.errors import UserError


def predict_run(config: TrainConfig[Any], on: str, *, show: Callable[[str], None] = print) -> Prediction:
    """Show what the recipe would come to on the card that `on` names.

    Raises UserError for what a run would refuse, an unknown card, and settings that a prediction cannot follow.
    """
    card = read_card(on)
    config = resolve(config)
    config.check()
    check_predictable(config)
    runtime = runtime_on(card, precision=config.precision, channels_last=config.channels_last)
    info = teacher_info(config, runtime)
    show(
        f"PREDICTION: {config.method_name}, {config.teacher} -> {config.student}, {info.image_size} px, "
        f"{info.num_classes} classes, one {card.name}, {runtime.precision}, by {card.rates_from}"
    )
    prediction = predict(config, info, card, graphs=config.cuda_graphs)
    for line in prediction.lines():
        show(line)
    return prediction


def check_predictable(stated: Any) -> None:
    """Raise UserError for settings of a run or of `bench methods` that a prediction cannot follow."""
    if stated.device != "auto":
        raise UserError(f"--device {stated.device}: --on says which card is meant; leave --device out")
    if stated.compile != "off":
        raise UserError(f"--compile {stated.compile}: --on knows the steps without torch.compile only; choose off")
    if getattr(stated, "cache_teacher_logits", 0) == "auto":
        raise UserError("--cache-teacher-logits auto: is resolved by timing, which --on cannot; choose 0 or a number")
