"""A user's own checkout of a released code: its command line, as its scripts have it, and the accuracy in its log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = "datafree_kd.py"
"""the training script of the releases of CMI, Fast and NAYER, which share it"""
EVALUATED = re.compile(r"\[Eval\] Epoch=(\d+) Acc@1=([0-9.]+)")


def read_checkouts(given: Sequence[str], methods: Sequence[str]) -> dict[str, Path]:
    """Folders by method from METHOD=DIR, or DIR where one of the raced methods has a release."""
    found: dict[str, Path] = {}
    for text in given:
        method, equals, folder = text.rpartition("=")
        raced = [name for name in methods if name in ARGUMENTS]
        if not equals and len(raced) == 1:
            method = raced[0]
        if method not in raced:
            wanted = ", ".join(f"{name}=DIR" for name in raced) or f"--methods with one of {', '.join(ARGUMENTS)}"
            raise SystemExit(f"--released {text}: choose {wanted}")
        if not (Path(folder) / SCRIPT).is_file():
            raise SystemExit(f"--released {text}: no {SCRIPT} in {folder}; choose a checkout of the released code")
        found[method] = Path(folder).resolve()
    return found


def command_line(method: str, config: Any, *, teacher: str, student: str, seed: int, folder: Path) -> list[str]:
    """Arguments of the training script for a method's config; its pool goes to `folder`."""
    values = {
        "method": "fast_meta" if method == "fast" else method,
        "dataset": "cifar10",
        "teacher": teacher,
        "student": student,
        "batch_size": config.batch_size,
        "synthesis_batch_size": config.synthesis_batch_size,
        "lr": config.student_lr,
        "epochs": config.epochs,
        "warmup": config.warmup_epochs,
        "kd_steps": config.student_steps,
        "ep_steps": config.student_steps,
        "g_steps": config.synthesis_steps,
        "lr_g": config.generator_lr,
        "adv": config.adv_weight,
        "bn": config.bn_weight,
        "oh": config.ce_weight,
        "act": 0,
        "balance": 0,
        "T": config.kd_temperature,
        "gpu": 0,
        "seed": seed,
        "workers": 0,
        "save_dir": str(folder / "pool"),
        "log_tag": f"race-s{seed}",
    } | ARGUMENTS[method](config)
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _nayer(config: Any) -> dict[str, Any]:
    life = config.generator_life or 10**6  # the release has no word for never
    loops = {"g_loops": config.rounds, "gwp_loops": config.warmup_rounds}
    return {"g_life": life, **loops, "bn_mmt": config.bn_momentum, "eta_min": config.student_lr_min}


def _fast(config: Any) -> dict[str, Any]:
    return {"lr_z": config.latent_lr, "bn_mmt": config.bn_momentum, "is_maml": 1, "reset_l0": 1, "reset_bn": 0}


def _cmi(config: Any) -> dict[str, Any]:
    return {"cr": config.contrastive_weight, "cr_T": config.contrastive_temperature}


ARGUMENTS = {"nayer": _nayer, "fast": _fast, "cmi": _cmi}
"""by method: what its script knows beside"""


def accuracy(log: str, *, epochs: int) -> float:
    """The share of the test images that the student names rightly after the last epoch, as the script has logged it."""
    found = EVALUATED.findall(log)
    if not found:
        raise SystemExit("no line `[Eval] Epoch=N Acc@1=X` in it")
    epoch, percent = found[-1]
    if int(epoch) != epochs - 1:
        raise SystemExit(f"the last evaluation is of epoch {epoch}, not of {epochs - 1}")
    return float(percent) / 100
