"""Whole runs in the released codes' style: `python bench/released_style/whole_run.py CONFIG FOLDER`.

CONFIG is a recipe as `dfkd-fast train` takes it (`--config`); FOLDER gets the pool and student.safetensors. Nothing is
evaluated. Order of an epoch, optimisers and schedule are the released codes'; what they do on the side for the
experimenter alone (logging to a server, tables, pictures for the eye, best checkpoints by test accuracy) is left out.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
if str(BENCH) not in sys.path:
    sys.path.insert(0, str(BENCH))

import torch  # noqa: E402

from dfkd_fast.config.sources import default_config, load_config, read_toml  # noqa: E402
from dfkd_fast.config.train import TrainConfig  # noqa: E402
from dfkd_fast.device.runtime import make_runtime  # noqa: E402
from dfkd_fast.models.info import ModelInfo  # noqa: E402
from dfkd_fast.text.label_embeddings import label_embeddings  # noqa: E402
from dfkd_fast.training.assemble import load_teacher, make_student  # noqa: E402
from dfkd_fast.training.checkpoints.checkpoint import save_network  # noqa: E402
from released_style.baseline import Baseline  # noqa: E402
from released_style.cmi import CmiBaseline  # noqa: E402
from released_style.fast import FastBaseline  # noqa: E402
from released_style.recipe import recipe_of  # noqa: E402
from released_style.schedule import begins_anew, check_followed, is_adversarial, rounds  # noqa: E402
from released_style.ssdkd import SsdkdBaseline  # noqa: E402

BASELINES: dict[str, type[Baseline]] = {
    "nayer": Baseline,
    "muse-s": Baseline,
    "fast": FastBaseline,
    "ssdkd": SsdkdBaseline,
    "cmi": CmiBaseline,
}


def make_baseline(config: TrainConfig[Any], folder: Path) -> tuple[Baseline, ModelInfo]:
    """The baseline of a run, its teacher loaded and its student drawn, and what the student is."""
    check_followed(config)
    runtime = make_runtime(device="cpu", precision="fp32", channels_last=False, threads=1)
    teacher, info = load_teacher(config, None, runtime, on_step=lambda: None)
    student = make_student(config, info, runtime)
    recipe = recipe_of(
        config, num_classes=info.num_classes, full_size=info.image_size.short, mean=info.mean, std=info.std
    )
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    pool = folder / "pool"
    pool.mkdir(parents=True)
    embeddings = label_embeddings(config.text, info.num_classes, names=info.class_names or None)
    kinds = {"workers": 0, "networks": (teacher, student), "embeddings": embeddings}
    return BASELINES[config.method_name](recipe, pool, **kinds), info


def train(baseline: Baseline) -> None:
    """All epochs of the recipe."""
    recipe, config, scheduler = baseline.recipe, baseline.recipe.config, scheduler_of(baseline)
    for epoch in range(config.epochs):
        synthesize(baseline, epoch)
        if epoch < config.warmup_epochs:
            continue
        baseline.student.train()
        for _ in range(config.steps_per_epoch):
            baseline.student_step()
        scheduler.step()
        print(f"epoch {epoch + 1} of {config.epochs}, {baseline.pool.written} images, {recipe.student}", flush=True)


def scheduler_of(baseline: Baseline) -> torch.optim.lr_scheduler.LRScheduler:
    """The student's cosine, which is stepped after each epoch that it learns in."""
    config = baseline.recipe.config
    epochs = config.epochs - config.warmup_epochs
    return torch.optim.lr_scheduler.CosineAnnealingLR(baseline.optimizer, epochs, eta_min=config.student_lr_min)


def synthesize(baseline: Baseline, epoch: int) -> None:
    """The rounds of an epoch."""
    config, full_size = baseline.recipe.config, baseline.recipe.full_size
    if begins_anew(config, epoch, full_size=full_size):
        baseline.renew_generator()
    if (
        isinstance(baseline, FastBaseline)
        and config.reset_epoch
        and epoch + 1 == (config.warmup_epochs + config.reset_epoch)
    ):
        baseline.reset_first_layers()
    stays = getattr(config, "student_mode", "eval") == "released"
    for index in range(rounds(config, epoch, full_size=full_size)):
        baseline.begin_round(later=stays and index > 0)
        for _ in range(config.synthesis_steps):
            print(baseline.synthesis_step(adversarial=is_adversarial(config, epoch)))
        baseline.end_round()


def read_config(file: Path) -> TrainConfig[Any]:
    """The settings that `write_config` or a user has written."""
    method = read_toml(file, "--config")["method"]["name"]
    return load_config(default_config(method), file=file)


def main(arguments: Sequence[str]) -> None:
    """Train the student of a recipe."""
    config, folder = read_config(Path(arguments[0])), Path(arguments[1])
    torch.set_num_threads(1)
    baseline, info = make_baseline(config, folder)
    train(baseline)
    save_network(folder / "student.safetensors", baseline.student, replace(info, name=config.student))


if __name__ == "__main__":
    main(sys.argv[1:])
