"""`dfkd-fast teacher`: train a teacher on real images, or say what a network or a checkpoint is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from dfkd_fast.catalog import MODELS
from dfkd_fast.cli.report import say
from dfkd_fast.config import Hardware, check_values
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.flags import from_flags, parse, take
from dfkd_fast.recipes import TeacherRecipe
from dfkd_fast.terminal import command, page, show

USAGE = """usage: dfkd-fast teacher train MODEL --data DATA --out FILE [--resume] [flags]
       dfkd-fast teacher info FILE|MODEL [--weights-key KEY]

train: train MODEL on the training split of DATA and write it to FILE; teacher train MODEL --help lists the flags.
       Stopped or killed, it goes on after the last whole epoch with the same command and --resume.
info: classes, image size, normalisation, parameters, BatchNorm layers and hash of a checkpoint, or of a network;
      of several networks in one file KEY names one.
MODEL: a name of dfkd-fast ls models, tv:NAME or timm:NAME."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(Hardware):
    """Flags of `dfkd-fast teacher train`."""

    data: str | None = None
    """real images: `digits`, or a path (image folder, tar of one, CIFAR files)"""
    out: Path | None = None
    """file to write, .safetensors"""
    image_size: int | None = None
    """pixels per side; without it the images' own"""
    recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    """how it is trained"""


def run(arguments: Sequence[str]) -> int:
    """Train or describe a teacher."""
    if not arguments or arguments[0] in ("-h", "--help"):
        page(USAGE)
        return 0
    command, *rest = arguments
    if command not in ("train", "info"):
        raise unknown("teacher", command, ("train", "info"))
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        missing = "MODEL" if command == "train" else "a checkpoint or a MODEL"
        raise UserError(f"teacher {command}: name {missing} first; dfkd-fast ls models lists networks")
    if rest[0] in ("-h", "--help"):
        page(USAGE)
    elif command == "train":
        return train(rest[0], rest[1:])
    else:
        info(rest[0], rest[1:])
    return 0


def train(model: str, arguments: Sequence[str]) -> int:
    """Train a network by the recipe that the flags give, and write it with what it expects in the file's header; the
    exit status is 128 + the signal's number when a signal stopped it.
    """
    resume, arguments = "--resume" in arguments, [argument for argument in arguments if argument != "--resume"]
    about = "A flag of the recipe may leave out its prefix, unless another has that name: --epochs for --recipe.epochs."
    flags, prog = from_flags(arguments), "dfkd-fast teacher train MODEL"
    options = parse(TeacherOptions, TeacherOptions(), flags, short="recipe", prog=prog, description=about)
    check_values(options)
    if options.data is None:
        raise UserError("--data: missing; choose digits or the path of real images")
    out = check_out(options.out)

    from dfkd_fast.data import check_apart, load_split, open_test
    from dfkd_fast.image_stream import Decoding
    from dfkd_fast.runtime import make_runtime

    runtime = make_runtime(
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
        threads=options.threads,
        deterministic=options.deterministic,
    )
    check_apart(options.data)
    images = load_split(options.data, "train", image_size=options.image_size)
    test = open_test(options.data, image_size=options.image_size, decoding=Decoding(flags="--"), device=runtime.device)
    return train_into(out, resume, options.recipe, model, images, test, runtime)


def train_into(out: Path, resume: bool, recipe: TeacherRecipe, model: str, images: Any, test: Any, runtime: Any) -> int:
    """Train into a file, one process at a time; `resume`: go on from what is beside it."""
    from dfkd_fast.checkpoint import disk_error, save_network
    from dfkd_fast.loops.interrupt import Interrupted, stop_signals
    from dfkd_fast.loops.teacher import made_from, train_teacher
    from dfkd_fast.loops.teacher_state import ENDING, TrainingState, only_one

    again = "the same command with --resume"
    words: dict[str, Any] = {"flag": "--out", "go_on": again}
    state = TrainingState(out.with_suffix(ENDING), made_from(recipe, model, images, runtime), **words)
    if resume and not state.folder.exists():
        raise UserError(f"--resume: no training of {out} to go on with ({state.folder} is not there); leave it out")
    if state.epochs and not resume:
        raise UserError(
            f"--out {out}: a training was stopped there after epoch {state.epochs}; go on with --resume, or delete "
            f"{state.folder}"
        )

    def refuse(busy: UserError) -> None:
        raise busy

    try:
        with stop_signals() as signals, only_one(state.folder, "--out", refuse):
            network, found, _ = train_teacher(
                recipe, model, images, test, runtime=runtime, on_step=signals.check, state=state
            )
            save_network(out, network, found)
            state.drop()
    except Interrupted as stop:
        kept = f"; to go on: {again}" if state.epochs else " before anything was written"
        return say(f"stopped by {stop}{kept}", kind="stopped", status=128 + stop.signum)
    except OSError as error:
        raise disk_error(error, out.parent, **words) from error
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


def info(target: str, arguments: Sequence[str]) -> None:
    """Print what is known of a checkpoint, or of a network by name."""
    key, arguments = take(arguments, "--weights-key")
    if arguments:
        raise UserError(f"teacher info {target}: takes --weights-key and nothing more, not {arguments[0]}")
    rows = describe_file(Path(target), key) if Path(target).is_file() else describe_model(target)
    for name, value in rows:
        show(f"{name:18}{value}")


def describe_file(file: Path, key: str | None = None) -> Iterator[tuple[str, object]]:
    """What a checkpoint says of itself and what its tensors tell; its network is not built."""
    from dfkd_fast.models.header import read_header
    from dfkd_fast.models.weights import read_weights

    weights = read_weights(file, flag="teacher info")
    header, tensors = read_header(weights.metadata, f"teacher info {file}"), weights.tensors_of(key)
    yield "network", header.get("name", "not said; dfkd-fast did not write this file")
    yield from ((key.replace("_", " "), header[key]) for key in ("num_classes", "image_size") if key in header)
    yield from ((key, list(header[key])) for key in ("mean", "std") if key in header)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    yield "parameters", sum(value.numel() for name, value in tensors.items() if not name.endswith(buffers))
    yield "BatchNorm layers", sum(name.endswith("running_mean") for name in tensors)
    yield "sha256", sha256(file.read_bytes()).hexdigest()


def describe_model(name: str) -> Iterator[tuple[str, object]]:
    """What a network by name is, without weights; ours are built for 10 classes of 32-pixel images."""
    from torch import nn

    from dfkd_fast.models.factory import load_model

    ours: dict[str, Any] = {}
    if name in MODELS:
        ours = {"num_classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model, found = load_model(name, flag="teacher info", **ours)
    yield "network", name
    yield from (("num classes", found.num_classes), ("image size", found.image_size))
    if not ours:
        yield from (("mean", list(found.mean)), ("std", list(found.std)))
    yield "parameters", sum(parameter.numel() for parameter in model.parameters())
    yield "BatchNorm layers", sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
