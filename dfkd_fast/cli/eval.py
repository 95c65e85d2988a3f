"""`dfkd-fast eval`: how well a run's student, or any checkpoint, names real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.own_networks import own_network, resolved
from dfkd_fast.config.setting import setting
from dfkd_fast.config.sources import load_run
from dfkd_fast.config.train import Hardware, NetworkInput, check_teacher_data, check_values
from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import command, page, quoted, show

if TYPE_CHECKING:
    from torch import nn

    from dfkd_fast.device.runtime import Runtime
    from dfkd_fast.models.factory import ModelInfo
    from dfkd_fast.training.evaluate import Expected

USAGE = """usage: dfkd-fast eval RUN --data DATA [flags]
       dfkd-fast eval FILE --data DATA [--student NAME] [flags]

RUN is a run folder; FILE a checkpoint, whose network --student names unless dfkd-fast wrote it.
dfkd-fast eval RUN --help lists the flags."""

STUDENT_FILE = "student.safetensors"


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Hardware, NetworkInput):
    """Flags of `dfkd-fast eval`."""

    data: str | None = None
    """real test images: `digits`, or a path (image folder, tar of one, CIFAR files); without it the run's own"""
    student: str | None = None
    """network in FILE, where the file does not say: named as train's --teacher; needed where it is your own"""
    student_args: tuple[str, ...] = setting((), formerly=())
    """arguments that your own network is built with, NAME=VALUE"""
    weights_key: str | None = None
    """which of several networks in FILE: the key of a dict (state_dict_ema), or the prefix of the names in one"""
    teacher_data: str = setting("", formerly="")
    """data set that it was trained on, whose convention stands in for what nobody states; as train's --teacher-data"""
    batch_size: int = setting(512, at_least=1)
    """images per step"""
    decoder: Literal["auto", "dali", "pil"] = "auto"
    """what decodes the images, as train's --eval.decoder"""
    workers: int | None = setting(None, at_least=1, at_most=2**12)
    """threads that decode; without it one for each core, up to 16"""
    resize: int | None = setting(None, at_least=1, at_most=2**15)
    """pixels that the short side is scaled to before the middle square is cut out, as train's --eval.resize"""


def run(arguments: Sequence[str]) -> int:
    """Print top-1 and top-5 on the test split."""
    if not arguments or arguments[0] in ("-h", "--help"):
        page(USAGE)
        return 0
    target, flags = Path(arguments[0]), from_flags(arguments[1:])
    options = parse(EvalOptions, EvalOptions(), flags, prog="dfkd-fast eval RUN")
    check_values(options)
    check_teacher_data(options.teacher_data)
    file, data = find_student(target, options.data)

    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.evaluate import evaluate
    from dfkd_fast.training.judge import accuracy_lines

    runtime = make_runtime(
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
        threads=options.threads,
        deterministic=options.deterministic,
    )
    model, info, test = load(file, data, options, runtime, target if target.is_dir() else None)
    found = evaluate(runtime.place(model), test.images, info=info, runtime=runtime, batch_size=options.batch_size)
    show(f"{file}: {info.name} on {len(test.images)} images of {test.images.name}")
    show(f"{info.name}: {info.described()}")
    for line in accuracy_lines(found.top1, info, test):
        show(line)
    show(f"top-1 {found.top1:.4f} | top-5 {found.top5:.4f}")
    return 0


def find_student(target: Path, data: str | None) -> tuple[Path, str]:
    """The checkpoint and the data that a command line means; a run knows its own data."""
    file = target
    if target.is_dir():
        data = data or load_run(target, "eval").data
        file = target / STUDENT_FILE
        if not file.is_file():
            raise UserError(f"eval {target}: the run has no {STUDENT_FILE} yet; {command('train', '--resume', target)}")
    elif not target.is_file():
        raise UserError(f"eval {target}: no such run folder or file")
    if data is None:
        raise UserError("--data: missing; choose digits or the path of real test images")
    return file, data


def check_trusted(file: Path, run: Path | None) -> None:
    """Raise UserError where a file's network is someone's own code that nobody asked to be run, or that has changed.

    A run folder is the user's, and says which code it was; a file alone may be anybody's.
    """
    from dfkd_fast.training.checkpoints.checkpoint import written_name
    from dfkd_fast.training.checkpoints.sources import check_sources

    name = written_name(file, flag="eval")
    if own_network(name) is None:
        return
    ask = f"give --student {quoted(name)}"
    if run is None:
        raise UserError(f"eval {file}: its network is code, {name}; to run it {ask}")
    check_sources(run, load_run(run, "eval"), "eval", f"to run it as it is now, {ask}", roles=["student"])


def load(
    file: Path, data: str, options: EvalOptions, runtime: Runtime, run: Path | None = None
) -> tuple[nn.Module, ModelInfo, Expected[Any]]:
    """The network in a file, of `run` if it lies in a run folder, and the test images as it expects them."""
    from dfkd_fast.data.class_order import stated_order
    from dfkd_fast.data.splits import load_test_split
    from dfkd_fast.data.stream import Decoding
    from dfkd_fast.models.factory import load_model
    from dfkd_fast.training.assemble import stated_values
    from dfkd_fast.training.checkpoints.checkpoint import written_name
    from dfkd_fast.training.evaluate import as_expected, image_channels

    if options.student is None:
        check_trusted(file, run)
    spec = resolved(options.student or written_name(file, flag="eval"), options.student_args, "--student")
    model, info = load_model(
        spec,
        **stated_values(options),
        data_set=options.teacher_data,
        weights=file,
        weights_key=options.weights_key,
        flag="--student" if options.student else "eval",
        weights_flag="eval",
    )
    test = load_test_split(
        data,
        image_size=info.image_size,
        decoding=Decoding(
            decoder=options.decoder,
            workers=options.workers,
            resize=options.resize,
            interpolation=info.interpolation,
            flags="--",
        ),
        device=runtime.device,
        channels=image_channels(info),
    )
    return model, info, as_expected(test, info, stated_order(options.class_order))
