"""`dfkd-fast train`: from a command line to a config, and from a config to a run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfkd_fast.catalog import METHODS
from dfkd_fast.cli.report import REPORTS, report_exit
from dfkd_fast.config.flags import take
from dfkd_fast.config.own_networks import moved, unplaced
from dfkd_fast.config.record import BY_MACHINE, FREE, MOVABLE, NETWORKS, differences
from dfkd_fast.config.sources import default_config, load_config, load_run, named_method, resolve
from dfkd_fast.config.train import CONFIG_FILE, TrainConfig
from dfkd_fast.errors import UserError, refused
from dfkd_fast.messages.terminal import command, page, show

USAGE = """usage: dfkd-fast train METHOD [--preset P] [--config FILE] [--run-dir DIR] [--resume [DIR]] [flags]
       dfkd-fast train METHOD ... [--devices N] [--dry-run [--on CARD]]
       dfkd-fast train --resume DIR

A preset fills in a published or tried recipe, a TOML file changes it, flags change both.
--resume goes on from the last checkpoint of DIR, or of the run folder that the other flags lead to.
--other-code lets a run resume with another dfkd-fast, library or kind of device than it was started with.
--dry-run times a few steps on this machine, says what the run would cost, and writes nothing.
--on predicts that for a card that is not here, from the kernels of the steps and the card's rates; nothing is timed.
--devices runs N processes, one for each GPU (auto: all), on a CPU with a part of the cores each.
METHOD: {methods}. dfkd-fast train METHOD [--preset P] --help lists its flags with their values."""


def run(arguments: Sequence[str]) -> int:
    """Train; the exit status is 128 + the signal's number when a signal stopped the run."""
    if not arguments or arguments[0] in ("-h", "--help"):
        page(USAGE.format(methods=", ".join(METHODS)))
        return 0
    devices, arguments = take(arguments, "--devices")
    card, arguments = take(arguments, "--on")
    rehearsed = "--dry-run" in arguments
    if card is not None and not rehearsed:
        raise UserError(f"--on {card}: predicts what a dry run would say there; give --dry-run as well")
    if card is not None and devices is not None:
        raise UserError(f"--on {card}: predicts one card; leave --devices out")
    other_code = "--other-code" in arguments
    config, resume = read_arguments([each for each in arguments if each not in ("--dry-run", "--other-code")])
    if other_code and not resume:
        raise UserError("--other-code: says that another dfkd-fast began the run; it goes with --resume only")
    if devices is not None:
        from dfkd_fast.cli.devices import count_devices, launch

        count = count_devices(devices, config.device)
        if count > 1:
            return launch(arguments, count, config.run_folder)
    if config.cache_teacher_logits == "auto":
        from dfkd_fast.benchmark.auto import resolved
        from dfkd_fast.training.records.run_folder import check_folder

        if not rehearsed:  # before anything is measured for it
            check_folder(config.run_folder, resume=False)
        config = resolved(config)
    if rehearsed:
        if card is None:
            from dfkd_fast.benchmark.dry_run import dry_run

            dry_run(config)
        else:
            from dfkd_fast.benchmark.on_card import predict_run

            predict_run(config, card)
        return 0
    from dfkd_fast.training.interrupt import Interrupted
    from dfkd_fast.training.train import train

    try:
        train(config, resume=resume, other_code=other_code)
    except Interrupted as stop:
        go_on = f"; {stop.note}" if stop.note else " before anything was written"
        if stop.run_dir:
            go_on = f"; to go on: {command('train', '--resume', stop.run_dir)}"
        return report_exit(f"stopped by {stop}{go_on}", kind="stopped", status=128 + stop.signum)
    return 0


def read_arguments(arguments: Sequence[str]) -> tuple[TrainConfig[Any], bool]:
    """The config that a command line asks for, and whether it resumes a run."""
    method = None if arguments[0].startswith("-") else arguments[0]
    preset, flags = take(arguments[1:] if method else arguments, "--preset")
    named_file, flags = take(flags, "--config")
    resumed, flags = take(flags, "--resume", optional=True)
    file = Path(named_file) if named_file else None
    if resumed:
        saved = load_run(Path(resumed))
        if method not in (None, saved.method_name):
            raise UserError(f"train {method}: the run in {resumed} is one of {saved.method_name}")
        base, folder = replace(saved, stop_after_epoch=None), Path(resumed)
    else:
        if method is None and file is None:
            raise UserError(f"train: name a method first; choose {' or '.join(METHODS)}")
        base, folder = default_config(method or named_method(file or Path())), None
    config = load_config(base, preset=preset, file=file, flags=flags)
    config = resolve(config)
    if resumed:
        teacher, student = moved(base.teacher, config.teacher), moved(base.student, config.student)
        config = replace(config, teacher=teacher, student=student)
    config.check()
    with refused("--run-dir", config.run_folder):  # a name too long is found here, before anything looks into it
        goes_on, free = _goes_on(config), _free_folder(config.run_folder)
    if resumed is None and not goes_on:
        if config.run_dir is None and free != config.run_folder:
            config = replace(config, run_dir=free)
        # of the processes that torchrun starts, one speaks; where --devices has started them, it has spoken
        if int(os.environ.get("RANK", 0)) == 0 and REPORTS not in os.environ:
            _announce(load_config(base, preset=preset), config, preset)
        return config, False
    if folder not in (None, config.run_dir):
        raise UserError(f"--run-dir {config.run_dir}: a resumed run stays in its folder, {folder}")
    folder = folder or config.run_dir or _newest_run(config.run_folder)
    saved = load_run(folder)
    if config.cache_teacher_logits == "auto":  # what that came to when the run was started
        config = replace(config, cache_teacher_logits=saved.cache_teacher_logits)
    _check_same(saved, config, folder)
    return replace(config, run_dir=folder), True


def _goes_on(config: TrainConfig[Any]) -> bool:
    """Whether torchrun may have started this command before (`--max-restarts`), and --run-dir holds what it made."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    return restarts > 0 and config.run_dir is not None and (config.run_dir / CONFIG_FILE).exists()


def _numbered(folder: Path) -> Iterator[Path]:
    """The default run folder and the names that further runs of the same config get: DIR, DIR-2, DIR-3, ..."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))


def _free_folder(folder: Path) -> Path:
    """The first of the default names that holds no run: a run that is made again overwrites nothing."""
    return next(path for path in _numbered(folder) if not (path / CONFIG_FILE).exists())


def _newest_run(folder: Path) -> Path:
    """The last of the default names that holds a run; the first where there is none."""
    runs = list(itertools.takewhile(lambda path: (path / CONFIG_FILE).exists(), _numbered(folder)))
    return runs[-1] if runs else folder


def _check_same(saved: TrainConfig[Any], config: TrainConfig[Any], folder: Path) -> None:
    """Raise UserError where a resumed run would compute something else than its first part did."""
    if saved.method_name != config.method_name:
        raise UserError(f"--resume {folder}: that is a run of {saved.method_name}, not of {config.method_name}")
    for key, old, new in differences(saved, config):
        same_elsewhere = key in MOVABLE or (key in NETWORKS and unplaced(old) == unplaced(new))
        left_open = key in BY_MACHINE and old == "auto"  # what that came to is compared later
        if not key.startswith(FREE) and not same_elsewhere and not left_open:
            flag = f"--{key.replace('_', '-')}"
            raise UserError(f"{flag} {new}: the run in {folder} has {old}; a resumed run keeps its config")


def _announce(before: TrainConfig[Any], config: TrainConfig[Any], preset: str | None) -> None:
    """Print what the run is and how it differs from its preset, or from the method's defaults."""
    show(f"{config.method_name}, {f'preset {preset}' if preset else 'defaults'} -> {config.run_folder}")
    for key, old, new in differences(before, config):
        unset = old is None or old == "" or old == ()
        show(f"  {key} = {_written(new)}" + ("" if unset else f" (not {_written(old)})"))


def _written(value: Any) -> str:
    """A setting as its flag is given."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
