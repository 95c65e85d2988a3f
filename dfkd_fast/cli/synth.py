"""`dfkd-fast synth`: images of a teacher's classes, without its data and without a student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfkd_fast.cli.report import report_exit
from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import divide, from_flags, parse
from dfkd_fast.config.setting import setting
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import check_values
from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import page, show

USAGE = """usage: dfkd-fast synth TEACHER --n N --out OUT [--method METHOD] [--preset P] [flags]

TEACHER is a network as train's --teacher takes it; --teacher-weights names its
file. OUT says by its name what is written: a folder (class folders of PNG
files), NAME.tar (a tar of such a folder), NAME-%06d.tar (WebDataset shards) or
NAME.npz (arrays), with a manifest: hashes, recipe, seed, teacher, licence.
A stopped command goes on where it was when it is given again; until then its
images are in OUT.synth.
All other flags are those of train: dfkd-fast synth TEACHER --help lists them."""

GROUPS = {
    "what is made": ("--n", "--out", "--method", "--preset", "--licence", "--seed"),
    "the teacher": ("--teacher-weights", "--num-classes", "--image-size", "--mean", "--std", "--class-names"),
    "recipe": ("--synthesis-steps", "--synthesis-batch-size", "--bn-weight", "--ce-weight"),
    "this machine": ("--device", "--precision", "--threads"),
}


@dataclass(frozen=True, kw_only=True)
class SynthCommand:
    """Flags of `dfkd-fast synth` that are no setting of a run."""

    n: int | None = setting(None, at_least=1, at_most=10**8)
    """how many images"""
    out: Path | None = None
    """folder or file that is written; its name says which kind"""
    method: str = "deepinversion"
    """what makes them: deepinversion, which optimises each batch by itself, fast, nayer or cmi"""
    preset: str | None = None
    """recipe of that method: dfkd-fast ls presets METHOD"""
    licence: str = ""
    """text for the manifest, under which terms the images may be used; they follow from the teacher's"""


PAGE = HelpPage(usage=USAGE)


def run(arguments: Sequence[str]) -> int:
    """Make images; the exit status is 128 + the signal's number when a signal stopped it."""
    if not arguments or arguments[0] in HELP:
        page(PAGE.text(SynthCommand(), everything=HELP[-1] in arguments))
        return 0
    teacher, *rest = arguments
    if teacher.startswith("-"):
        raise UserError(f"synth {teacher}: name the teacher first, as train's --teacher")
    own, others = divide(from_flags(rest), SynthCommand())
    asked = parse(SynthCommand, SynthCommand(), own, page=PAGE)
    flags = ["--teacher", teacher, "--no-train-teacher", *(token for each in others for token in each.arguments)]
    usage = HelpPage(usage="usage: dfkd-fast synth TEACHER --n N --out OUT [flags]", groups=GROUPS, beside=asked)
    config = load_config(default_config(asked.method), preset=asked.preset, flags=flags, page=usage)
    if asked.n is None:
        raise UserError("--n: missing; say how many images")
    if asked.out is None:
        raise UserError("--out: missing; choose a folder, NAME.tar, NAME-%06d.tar or NAME.npz")
    check_values(asked)

    from dfkd_fast.deploy.synth import synth
    from dfkd_fast.training.interrupt import Interrupted, stop_signals

    try:
        with stop_signals() as signals:
            made = synth(config, asked.n, asked.out, licence=asked.licence, signals=signals, say=show)
    except Interrupted as stop:
        go_on = "to go on, give the command again"
        return report_exit(f"stopped by {stop}; {go_on}", kind="stopped", status=128 + stop.signum)
    agrees = made["teacher_names_them_as_meant"]
    show(f"wrote {asked.n:,} images to {asked.out}; the teacher names {agrees:.1%} of them as they were meant")
    absent = [name for name, images in zip(made["class_names"], made["per_class"], strict=True) if not images]
    if absent:
        show(f"no image of {len(absent)} classes, {', '.join(absent[:5])}: they have no folder either; choose more --n")
    if not asked.licence:
        show("no --licence: whether they may be used follows from the licence of the teacher's weights")
    return 0
