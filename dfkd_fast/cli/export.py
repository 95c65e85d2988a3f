"""`dfkd-fast export`: a run's student, or the network in a file, as a file that other programs run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.setting import setting
from dfkd_fast.config.train import SavedNetworkInput, check_teacher_data, check_values
from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import page, show

USAGE = """usage: dfkd-fast export RUN --to onnx|torch-export|torchscript|safetensors [flags]
       dfkd-fast export FILE --to onnx|torch-export|torchscript|safetensors [flags]

RUN is a run folder, of a run that has ended or not; FILE a checkpoint, whose network --student names unless dfkd-fast
wrote it. The exported network takes any number of float images in [0, 1], (batch, channels, height, width), and
answers with logits: mean and std are in its graph. What it takes, its class names and its SHA-256 stand in a JSON file
beside it. It is read back and compared with the student; if it answers otherwise, nothing is written."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(SavedNetworkInput):
    """Flags of `dfkd-fast export`."""

    to: Literal["onnx", "torch-export", "torchscript", "safetensors"] | None = None
    """format: ONNX, torch.export's .pt2, TorchScript, or safetensors, which has the weights alone"""
    out: Path | None = None
    """file that is written; without it RUN/export/student.<ending>, or FILE's name with the format's ending"""
    data: str | None = None
    """real test images that are compared, too: `digits`, or a path, as train's --data"""
    real_images: int = setting(1000, at_least=1)
    """how many of those, from places spread evenly over them"""
    opset: int = setting(18, at_least=18, at_most=25)
    """ONNX operator set; 18 is read by onnxruntime 1.14 and later"""
    tolerance: float = setting(1e-4, at_least=0)
    """largest difference of two logits that passes, as a share of the largest logit"""


PAGE = HelpPage(usage=USAGE)


def run(arguments: Sequence[str]) -> int:
    """Export a network and say what was checked."""
    if not arguments or arguments[0] in HELP:
        page(PAGE.text(ExportOptions(), everything=HELP[-1] in arguments))
        return 0
    target = Path(arguments[0])
    options = parse(ExportOptions, ExportOptions(), from_flags(arguments[1:]), page=PAGE)
    check_values(options)
    check_teacher_data(options.teacher_data)
    if options.to is None:
        raise UserError("--to: missing; choose onnx, torch-export, torchscript or safetensors")

    from dfkd_fast.deploy.check import real_images, synthetic_images
    from dfkd_fast.deploy.export import check_target, default_target, export
    from dfkd_fast.training.saved import load_saved

    out = options.out or default_target(target, options.to)
    check_target(options.to, out)
    saved = load_saved(target, options, flag="export")
    images = [synthetic_images(saved.info, saved.run)]
    if options.data is not None:
        images.append(real_images(options.data, saved.info, options.real_images))
    done = export(saved, options.to, out, tuple(images), opset=options.opset, tolerance=options.tolerance)
    shape = ", ".join(map(str, done.about["input"]["shape"]))
    show(f"{saved.origin}: {saved.info.name}, {saved.info.described()}")
    for check in done.checks:
        show(check.described())
    show(f"{options.to} takes float32 images ({shape}) in [0, 1]; {done.how}")
    show(f"wrote {done.file} ({done.about['bytes']:,} bytes, sha256 {done.about['sha256']})")
    show(f"wrote {done.file}.json")
    return 0
