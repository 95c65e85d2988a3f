"""`dfkd-fast teacher train`: train a teacher on real images; `teacher info` is in `teacher_info.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfkd_fast.cli.report import report_exit
from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.own_networks import check_untrained, resolved
from dfkd_fast.config.recipes import TeacherRecipe
from dfkd_fast.config.setting import setting
from dfkd_fast.config.sources import given_keys
from dfkd_fast.config.train import Hardware, NetworkInput, check_values
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.messages.refusals import disk_error
from dfkd_fast.messages.terminal import command, page, show

USAGE = """usage: dfkd-fast teacher train MODEL --data DATA --out FILE [--resume] [flags]
       dfkd-fast teacher info FILE|MODEL [flags]

train: train MODEL on the training split of DATA and write it to FILE; teacher train --help lists the flags.
       Stopped or killed, it goes on after the last whole epoch with the same command and --resume.
info: classes, image size, normalisation and who says so, parameters, BatchNorm layers and hash of a checkpoint, or of a
      network; with --mean, --std, --in-chans, --image-size, --interpolation, --num-classes or --class-order what train
      would take, and with --network NAME what that network's library says of a FILE that does not; of several networks
      in one file --weights-key names one.
MODEL: a name of dfkd-fast ls models, tv:NAME, timm:NAME, or your own as FILE.py:NAME (its code is run); of info also
       zoo:NAME, whose card it prints."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(Hardware, NetworkInput):
    """Flags of `dfkd-fast teacher train`."""

    data: str | None = None
    """real images: `digits`, or a path (image folder, tar of one, CIFAR files)"""
    out: Path | None = None
    """file to write, .safetensors"""
    resume: bool = False
    """go on after the last whole epoch of a training that was stopped"""
    teacher_args: tuple[str, ...] = setting((), formerly=())
    """arguments that your own network is built with, NAME=VALUE"""
    recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    """how it is trained"""


def run(arguments: Sequence[str]) -> int:
    """Train or describe a teacher."""
    if not arguments or arguments[0] in HELP:
        page(USAGE)
        return 0
    command, *rest = arguments
    if command not in ("train", "info"):
        raise unknown("teacher", command, ("train", "info"))
    asked = [word for word in rest if word in HELP]
    rest = ["MODEL", *asked[:1]] if asked else rest
    if not rest or rest[0].startswith("-"):
        missing = "MODEL" if command == "train" else "a checkpoint or a MODEL"
        raise UserError(f"teacher {command}: name {missing} first; dfkd-fast ls models lists networks")
    if command == "train":
        return train(rest[0], rest[1:])
    from dfkd_fast.cli.teacher_info import info

    info(rest[0], rest[1:])
    return 0


def train(model: str, arguments: Sequence[str]) -> int:
    """Train a network by the recipe that the flags give, and write it with what it expects in the file's header; the
    exit status is 128 + the signal's number when a signal stopped it.
    """
    about = "A flag of the recipe may leave out its prefix, unless another has that name: --epochs for --recipe.epochs."
    flags = from_flags(arguments)
    help_page = HelpPage(usage="usage: dfkd-fast teacher train MODEL --data DATA --out FILE [flags]", about=about)
    options = parse(TeacherOptions, TeacherOptions(), flags, page=help_page, short="recipe")
    options = replace(options, recipe=options.recipe.keeping(given_keys(flags)))
    check_values(options)
    check_untrained(model, "teacher train")
    model = resolved(model, options.teacher_args, "--teacher")
    if options.data is None:
        raise UserError("--data: missing; choose digits or the path of real images")
    out = check_out(options.out)

    from dfkd_fast.data.splits import check_disjoint_splits, load_split, load_test_split
    from dfkd_fast.data.stream import Decoding
    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.evaluate import in_stated_order, stated_channels

    runtime = make_runtime(
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
        threads=options.threads,
        deterministic=options.deterministic,
    )
    check_disjoint_splits(options.data)
    size, interpolation, channels = options.image_size, options.interpolation or "bilinear", stated_channels(options)
    images = load_split(options.data, "train", image_size=size, channels=channels, interpolation=interpolation)
    decoding = Decoding(flags="--", interpolation=interpolation)
    test = load_test_split(options.data, image_size=size, channels=channels, decoding=decoding, device=runtime.device)
    images, test = in_stated_order(images, options), in_stated_order(test, options)
    if options.num_classes not in (None, images.num_classes):
        raise UserError(f"--num-classes {options.num_classes}: {images.name} has {images.num_classes}; leave it out")
    return train_into(out, options.resume, options, model, images, test, runtime)


def train_into(
    out: Path, resume: bool, options: TeacherOptions, model: str, images: Any, test: Any, runtime: Any
) -> int:
    """Train into a file, one process at a time; `resume`: go on from what is beside it."""
    from dfkd_fast.training.checkpoints.checkpoint import save_network
    from dfkd_fast.training.interrupt import Interrupted, stop_signals
    from dfkd_fast.training.teachers.state import ENDING, TrainingState, only_one
    from dfkd_fast.training.teachers.train import made_from, train_teacher

    recipe, again = options.recipe, "the same command with --resume"
    words: dict[str, Any] = {"flag": "--out", "go_on": again}
    state = TrainingState(out.with_suffix(ENDING), made_from(recipe, model, images, runtime, options), **words)
    if resume and not state.folder.exists():
        raise UserError(f"--resume: no training of {out} to resume ({state.folder} is not there); leave it out")
    if state.epochs and not resume:
        raise UserError(
            f"--out {out}: a training was stopped there after epoch {state.epochs}; resume with --resume, or delete "
            f"{state.folder}"
        )

    def refuse(busy: UserError) -> None:
        raise busy

    try:
        with stop_signals() as signals, only_one(state.folder, "--out", refuse):
            network, found, measured = train_teacher(
                recipe, model, images, test, runtime=runtime, stated=options, on_step=signals.check, state=state
            )
            save_network(out, network, found, top1=None if measured is None else measured.top1)
            state.drop(show)
    except Interrupted as stop:
        kept = f"; to go on: {again}" if state.epochs else " before anything was written"
        return report_exit(f"stopped by {stop}{kept}", kind="stopped", status=128 + stop.signum)
    except OSError as error:
        raise disk_error(error, out.parent, **words) from error
    show(f"{model}: {found.described()}")
    distil = command("train", "METHOD", "--teacher", model, "--teacher-weights", out)
    show(f"wrote {out}; to distil from it: {distil}")
    return 0


def check_out(out: Path | None) -> Path:
    """The file to write, known before the training to be one that can be written."""
    if out is None:
        raise UserError("--out: missing; name the file to write")
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: choose a name that ends in .safetensors")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: {out.parent} is no folder that can be written to")
    return out
