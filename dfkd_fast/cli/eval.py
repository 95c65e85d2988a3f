"""`dfkd-fast eval`: how well a run's student, or any checkpoint, names real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.own_networks import hf_folder
from dfkd_fast.config.setting import setting
from dfkd_fast.config.sources import load_run
from dfkd_fast.config.train import Hardware, SavedNetworkInput, check_teacher_data, check_values
from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import page, show
from dfkd_fast.models.zoo.cards import is_zoo

if TYPE_CHECKING:
    from dfkd_fast.device.runtime import Runtime
    from dfkd_fast.models.factory import ModelInfo
    from dfkd_fast.training.evaluate import Expected

USAGE = """usage: dfkd-fast eval RUN --data DATA [flags]
       dfkd-fast eval FILE --data DATA [--student NAME] [flags]
       dfkd-fast eval zoo:NAME|hf:FOLDER|FILE.pt2|FILE.pt --data DATA [flags]

RUN is a run folder; FILE a checkpoint, whose network --student names unless dfkd-fast wrote it; zoo:NAME a published
network of dfkd-fast ls zoo. Of a run that has not ended the newest checkpoint's student is judged."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Hardware, SavedNetworkInput):
    """Flags of `dfkd-fast eval`."""

    data: str | None = None
    """real test images: `digits`, or a path (image folder, tar of one, CIFAR files); without it the run's own"""
    batch_size: int = setting(512, at_least=1)
    """images per step"""
    decoder: Literal["auto", "dali", "pil"] = "auto"
    """what decodes the images, as train's --eval.decoder"""
    workers: int | None = setting(None, at_least=1, at_most=2**12)
    """threads that decode; without it one for each core, up to 16"""
    resize: int | None = setting(None, at_least=1, at_most=2**15)
    """pixels that the short side is scaled to before the middle square is cut out, as train's --eval.resize"""


PAGE = HelpPage(usage=USAGE)


def run(arguments: Sequence[str]) -> int:
    """Print top-1 and top-5 on the test split."""
    if not arguments or arguments[0] in HELP:
        page(PAGE.text(EvalOptions(), everything=HELP[-1] in arguments))
        return 0
    target, flags = Path(arguments[0]), from_flags(arguments[1:])
    options = parse(EvalOptions, EvalOptions(), flags, page=PAGE)
    check_values(options)
    check_teacher_data(options.teacher_data)
    data = find_data(target, options.data)

    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.evaluate import evaluate
    from dfkd_fast.training.judge import accuracy_lines
    from dfkd_fast.training.saved import load_saved

    runtime = make_runtime(
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
        threads=options.threads,
        deterministic=options.deterministic,
    )
    model, info, origin, _ = load_saved(target, options, flag="eval")
    test = load_images(data, info, options, runtime)
    found = evaluate(runtime.place(model), test.images, info=info, runtime=runtime, batch_size=options.batch_size)
    show(f"{origin}: {info.name} on {len(test.images)} images of {test.images.name}")
    show(f"{info.name}: {info.described()}")
    for line in accuracy_lines(found.top1, info, test):
        show(line)
    show(f"top-1 {found.top1:.4f} | top-5 {found.top5:.4f}")
    return 0


def find_data(target: Path, data: str | None) -> str:
    """The images that a command line means; a run knows its own."""
    if not target.exists() and not is_zoo(str(target)) and hf_folder(str(target)) is None:
        raise UserError(f"eval {target}: no such run folder or file")
    if data is None and target.is_dir():
        data = load_run(target, "eval").data
    if data is None:
        raise UserError("--data: missing; choose digits or the path of real test images")
    return data


def load_images(data: str, info: ModelInfo, options: EvalOptions, runtime: Runtime) -> Expected[Any]:
    """The test images as a network expects them."""
    from dfkd_fast.data.class_order import stated_order
    from dfkd_fast.data.splits import load_test_split
    from dfkd_fast.data.stream import Decoding
    from dfkd_fast.training.evaluate import as_expected

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
        channels=info.in_chans,
    )
    return as_expected(test, info, stated_order(options.class_order))
