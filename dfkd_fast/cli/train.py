"""`dfkd-fast train`: from a command line to a config, and from a config to a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfkd_fast.catalog import METHODS
from dfkd_fast.cli.report import REPORTS, report_exit
from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import divide, from_flags, parse
from dfkd_fast.config.own_networks import moved
from dfkd_fast.config.record import differences
from dfkd_fast.config.run_folders import check_same, free_folder, newest_run
from dfkd_fast.config.setting import setting
from dfkd_fast.config.sources import default_config, load_config, load_run, named_method, resolve
from dfkd_fast.config.train import CONFIG_FILE, TrainConfig
from dfkd_fast.errors import UserError, refused
from dfkd_fast.messages.terminal import command, page, show

USAGE = """usage: dfkd-fast train METHOD [--preset P] [--config FILE] [--run-dir DIR] [--resume [DIR]] [flags]
       dfkd-fast train METHOD ... [--devices N] [--dry-run [--on CARD]]
       dfkd-fast train --resume DIR

A preset fills in a published or tried recipe, a TOML file changes it, flags change both.
METHOD: {methods}.
dfkd-fast train METHOD [--preset P] --help lists its flags with their values."""

NEWEST = "\0"
"""`--resume` without a folder; no folder can be called so"""

GROUPS = {
    "start from": ("--preset", "--config", "--resume", "--run-dir", "--seed"),
    "networks": ("--teacher", "--teacher-weights", "--train-teacher", "--student"),
    "what the teacher expects": ("--num-classes", "--image-size", "--mean", "--std", "--class-names", "--text"),
    "judge by real images": ("--data", "--eval.every"),
    "recipe": ("--epochs", "--warmup-epochs", "--synthesis-steps", "--student-steps", "--batch-size", "--bn-weight"),
    "this machine": ("--device", "--devices", "--precision", "--threads", "--cache-teacher-logits"),
    "what it would cost": ("--dry-run", "--on"),
}
"""flags of `train METHOD --help`, which fits a screen"""


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Flags of `dfkd-fast train` that are no setting of a run."""

    preset: str | None = None
    """published or tried recipe that fills in what no other flag says: dfkd-fast ls presets METHOD"""
    config: Path | None = None
    """TOML file with settings, over the preset's; flags change both"""
    resume: str | None = setting(None, alone=NEWEST)
    """go on from the last checkpoint of this run folder; without a folder, of the one that the other flags lead to"""
    other_code: bool = False
    """resume with another dfkd-fast, library or kind of device than the run was started with"""
    dry_run: bool = False
    """time a few steps on this machine, say what the run would cost, and write nothing"""
    on: str | None = None
    """card that is not here, for which --dry-run predicts, from the kernels of the steps and the card's rates:
    a100-80gb, a100-40gb, h100, h200, b200, rtx4090, l4 or v100
    """
    devices: str | None = None
    """processes, one for each GPU (auto: all), on a CPU with a part of the cores each"""


def run(arguments: Sequence[str]) -> int:
    """Train; the exit status is 128 + the signal's number when a signal stopped the run."""
    if not arguments or arguments[0] in HELP:
        page(USAGE.format(methods=", ".join(METHODS)))
        return 0
    method, asked, flags = read_command(arguments)
    if asked.on is not None and not asked.dry_run:
        raise UserError(f"--on {asked.on}: predicts what a dry run would say there; give --dry-run as well")
    if asked.on is not None and asked.devices is not None:
        raise UserError(f"--on {asked.on}: predicts one card; leave --devices out")
    config, resume = read_config(method, asked, flags)
    if asked.other_code and not resume:
        raise UserError("--other-code: says that another dfkd-fast began the run; it goes with --resume only")
    if asked.devices is not None:
        from dfkd_fast.cli.devices import count_devices, launch

        count = count_devices(asked.devices, config.device)
        if count > 1:
            return launch(_without_devices(arguments), count, config.run_folder)
    if config.cache_teacher_logits == "auto":
        config = _with_cached_answers(config, asked.dry_run)
    if asked.dry_run:
        _rehearse(config, asked.on)
        return 0
    from dfkd_fast.training.interrupt import Interrupted
    from dfkd_fast.training.train import train

    try:
        train(config, resume=resume, other_code=asked.other_code)
    except Interrupted as stop:
        go_on = f"; {stop.note}" if stop.note else " before anything was written"
        if stop.run_dir:
            go_on = f"; to go on: {command('train', '--resume', stop.run_dir)}"
        return report_exit(f"stopped by {stop}{go_on}", kind="stopped", status=128 + stop.signum)
    return 0


def _with_cached_answers(config: TrainConfig[Any], rehearsed: bool) -> TrainConfig[Any]:
    """The config with what `--cache-teacher-logits auto` comes to, by a measurement."""
    from dfkd_fast.benchmark.auto import resolved
    from dfkd_fast.training.records.run_folder import check_folder

    if not rehearsed:  # before anything is measured for it
        check_folder(config.run_folder, resume=False)
    return resolved(config)


def _rehearse(config: TrainConfig[Any], card: str | None) -> None:
    """Say what the run would cost, here or on a card."""
    if card is None:
        from dfkd_fast.benchmark.dry_run import dry_run

        dry_run(config)
    else:
        from dfkd_fast.benchmark.on_card import predict_run

        predict_run(config, card)


def read_command(arguments: Sequence[str]) -> tuple[str | None, TrainCommand, list[str]]:
    """A command line's method, if it names one, what is asked for beside a config, and the flags that are settings."""
    method = None if arguments[0].startswith("-") else arguments[0]
    own, rest = divide(from_flags(arguments[1:] if method else arguments), TrainCommand())
    asked = parse(TrainCommand, TrainCommand(), own, page=HelpPage())
    return method, asked, [token for each in rest for token in each.arguments]


def _without_devices(arguments: Sequence[str]) -> list[str]:
    """The command line of each process."""
    count = 0 if arguments[0].startswith("-") else 1
    kept = [each for each in from_flags(arguments[count:]) if each.flag != "--devices"]
    return [*arguments[:count], *(token for each in kept for token in each.arguments)]


def read_arguments(arguments: Sequence[str]) -> tuple[TrainConfig[Any], bool]:
    """The config that a command line asks for, and whether it resumes a run."""
    return read_config(*read_command(arguments))


def read_config(method: str | None, asked: TrainCommand, flags: Sequence[str]) -> tuple[TrainConfig[Any], bool]:
    """The same of what `read_command` has found."""
    preset, file = asked.preset, asked.config
    resumed = None if asked.resume == NEWEST else asked.resume
    if resumed:
        saved = load_run(Path(resumed))
        if method not in (None, saved.method_name):
            raise UserError(f"train {method}: the run in {resumed} is one of {saved.method_name}")
        base, folder = replace(saved, stop_after_epoch=None), Path(resumed)
    else:
        if method is None and file is None:
            raise UserError(f"train: name a method first; choose {' or '.join(METHODS)}")
        base, folder = default_config(method or named_method(file or Path())), None
    usage = f"usage: dfkd-fast train {base.method_name} [flags]"
    about = "A flag of the recipe may leave out its prefix: --bn-weight for --method.bn-weight."
    help_page = HelpPage(usage=usage, about=about, groups=GROUPS, beside=asked)
    config = resolve(load_config(base, preset=preset, file=file, flags=flags, page=help_page))
    if resumed:
        teacher, student = moved(base.teacher, config.teacher), moved(base.student, config.student)
        config = replace(config, teacher=teacher, student=student)
    config.check()
    with refused("--run-dir", config.run_folder):  # a name too long is found here, before anything looks into it
        goes_on, free = _goes_on(config), free_folder(config.run_folder)
    if asked.resume is None and not goes_on:
        if config.run_dir is None and free != config.run_folder:
            config = replace(config, run_dir=free)
        # of the processes that torchrun starts, one speaks; where --devices has started them, it has spoken
        if int(os.environ.get("RANK", 0)) == 0 and REPORTS not in os.environ:
            _announce(load_config(base, preset=preset), config, preset)
        return config, False
    if folder not in (None, config.run_dir):
        raise UserError(f"--run-dir {config.run_dir}: a resumed run stays in its folder, {folder}")
    folder = folder or config.run_dir or newest_run(config.run_folder)
    saved = load_run(folder)
    if config.cache_teacher_logits == "auto":  # what that came to when the run was started
        config = replace(config, cache_teacher_logits=saved.cache_teacher_logits)
    check_same(saved, config, folder)
    return replace(config, run_dir=folder), True


def _goes_on(config: TrainConfig[Any]) -> bool:
    """Whether torchrun may have started this command before (`--max-restarts`), and --run-dir holds what it made."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    return restarts > 0 and config.run_dir is not None and (config.run_dir / CONFIG_FILE).exists()


def _announce(before: TrainConfig[Any], config: TrainConfig[Any], preset: str | None) -> None:
    """Print what the run is and how it differs from its preset, or from the method's defaults."""
    show(f"{config.method_name}, {f'preset {preset}' if preset else 'defaults'} -> {config.run_folder}")
    for key, old, new in differences(before, config):
        unset = old is None or old == "" or old == ()
        show(f"  {key} = {_written(new)}" + ("" if unset else f" (not {_written(old)})"))


def _written(value: Any) -> str:
    """A setting as its flag is given."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
