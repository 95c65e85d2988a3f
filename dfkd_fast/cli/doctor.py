"""`dfkd-fast doctor`: what a teacher is worth for data-free distillation, in seconds and without data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd_fast.cli.ls import print_table
from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.own_networks import own_network
from dfkd_fast.config.setting import setting
from dfkd_fast.config.sources import default_config, resolve
from dfkd_fast.config.train import Hardware, NetworkInput, check_teacher_data, check_values
from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import page, show

if TYPE_CHECKING:
    from torch import nn

    from dfkd_fast.device.runtime import Runtime
    from dfkd_fast.diagnosis.advice import Fit
    from dfkd_fast.diagnosis.response import Response
    from dfkd_fast.models.info import ModelInfo
    from dfkd_fast.models.teacher import FrozenNet

USAGE = """usage: dfkd-fast doctor TEACHER [--teacher-weights FILE] [--data DATA] [flags]

Looks at a teacher before hours are spent on it: BatchNorm statistics, range and normalisation, the loss of each layer
on noise and on images of a few generator steps, which methods take it and with which flags. TEACHER is named as train's
--teacher, or is a file that dfkd-fast wrote. The exit status is 1 where something is found that no run can do with."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Hardware, NetworkInput):
    """Flags of `dfkd-fast doctor`."""

    teacher_weights: Path | None = None
    """checkpoint of the teacher, as train's --teacher-weights"""
    teacher_weights_key: str | None = None
    """which of several networks in that file, as train's --teacher-weights-key"""
    teacher_args: tuple[str, ...] = setting((), formerly=())
    """arguments that your own network is built with, NAME=VALUE"""
    teacher_data: str = setting("", formerly="")
    """data set that it was trained on, as train's --teacher-data"""
    data: str | None = None
    """real test images, for its accuracy: `digits`, or a path, as train's --data"""
    layers: int = setting(8, at_least=0)
    """BatchNorm layers that are listed, those of the largest loss; 0: none"""


PAGE = HelpPage(usage=USAGE)


def run(arguments: Sequence[str]) -> int:
    """Examine a teacher; the exit status is 1 where there is an error in it."""
    if not arguments or arguments[0] in HELP:
        page(PAGE.text(DoctorOptions(), everything=HELP[-1] in arguments))
        return 0
    if arguments[0].startswith("-"):
        raise UserError("doctor: name a teacher first; dfkd-fast ls models lists networks")
    options = parse(DoctorOptions, DoctorOptions(), from_flags(arguments[1:]), page=PAGE)
    check_values(options)
    check_teacher_data(options.teacher_data)

    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.diagnosis.batchnorm import check_statistics
    from dfkd_fast.models.teacher import FrozenNet
    from dfkd_fast.training.judge import check_frozen

    runtime = make_runtime(
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
        threads=options.threads,
        deterministic=options.deterministic,
    )
    model, info = load(arguments[0], options, runtime)
    show(f"{info.name}: {sum(each.numel() for each in model.parameters()) / 1e6:.2f}M parameters, {info.described()}")
    found = list(check_statistics(model))
    for finding in found:
        show(finding)
    if any(finding.level == "error" for finding in found):
        return 1
    net = FrozenNet(model, info, runtime)
    check_frozen(net, runtime)
    for line in getattr(net.net, "report", ()):
        show(f"note: {line}")
    if options.data is not None:
        show_accuracy(options, model, info, runtime)
    return examine(net, info, runtime, options.layers)


def examine(net: FrozenNet, info: ModelInfo, runtime: Runtime, layers: int) -> int:
    """Try the network on images that are no data, and the methods on the network."""
    from dfkd_fast.diagnosis.advice import bn_weight, check_learning, check_range, fits
    from dfkd_fast.diagnosis.response import respond
    from dfkd_fast.models.factory import load_model

    response = respond(net, runtime, batch=min(64, max(8, 2**17 // info.image_size.area)))
    found = [*check_range(response, info), *check_learning(response, info)]
    for finding in found:
        show(finding)
    if response.layers and layers:
        print_layers(response, layers)
    weight = bn_weight(response)
    if weight is not None:
        show(f"suggested --bn-weight {weight:g}: the term then starts near 10")
    student, _ = load_model(
        "cnn_s",
        num_classes=info.num_classes,
        image_size=info.image_size,
        mean=info.mean,
        std=info.std,
        in_chans=info.in_chans,
        flag="doctor",
    )
    print_methods(fits(net, runtime, response, runtime.place(student)), response)
    return int(any(finding.level == "error" for finding in found))


def load(target: str, options: DoctorOptions, runtime: Runtime) -> tuple[nn.Module, ModelInfo]:
    """The teacher that a command line names."""
    from dfkd_fast.training.assemble import load_teacher
    from dfkd_fast.training.checkpoints.checkpoint import written_name

    file = Path(target)
    if options.teacher_weights is None and file.is_file() and own_network(target) is None:
        options = replace(options, teacher_weights=file)
        target = written_name(file, flag="doctor")
    given = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in ("data", "layers")}
    config = resolve(replace(default_config("fast"), teacher=target, **given))
    model, info = load_teacher(config, None, runtime, on_step=lambda: None)
    return model.eval(), info


def show_accuracy(options: DoctorOptions, model: nn.Module, info: ModelInfo, runtime: Runtime) -> None:
    """Its accuracy on real test images, and whether that is what one would expect."""
    from dfkd_fast.cli.eval import EvalOptions, load_images
    from dfkd_fast.training.evaluate import evaluate
    from dfkd_fast.training.judge import accuracy_lines

    assert options.data is not None
    test = load_images(options.data, info, EvalOptions(), runtime)
    found = evaluate(runtime.place(copy.deepcopy(model)), test.images, info=info, runtime=runtime)
    show(f"top-1 {found.top1:.4f} on {len(test.images)} images of {test.images.name}")
    for line in accuracy_lines(found.top1, info, test):
        show(line)


def print_layers(response: Response, count: int) -> None:
    """The BatchNorm layers of the largest loss on noise, in the network's order."""
    largest = sorted(response.layers, key=lambda each: -each.noise)[:count]
    head = ("BatchNorm layer", "on noise", "on pictures", "generated")
    rows = [
        (each.layer, f"{each.noise:.4g}", f"{each.pictures:.4g}", f"{each.generated:.4g}")
        for each in response.layers
        if each in largest
    ]
    show(f"loss of each BatchNorm layer, {len(rows)} of {len(response.layers)}:")
    print_table([head, *rows])


def print_methods(found: Iterable[Fit], response: Response) -> None:
    """Which methods take it."""
    show(
        f"methods, and hours here of the teacher's part alone ({1e3 * response.forward_seconds:.3g} ms an image, "
        f"{1e3 * response.gradient_seconds:.3g} ms with its gradient):"
    )
    rows = [
        (fit.method, "yes" if fit.fits else "no", "-" if fit.hours is None else f"{fit.hours:.3g} h", fit.how)
        for fit in found
    ]
    print_table([("METHOD", "fits", "hours", "with, or why not"), *rows])
    show("dfkd-fast train METHOD ... --dry-run says what a run costs with its student")
