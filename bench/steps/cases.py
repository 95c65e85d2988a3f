"""The cases of the step benchmark: two published pairs of networks, ours and the baseline at the same sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from released_style.baseline import Baseline
from released_style.cmi import CmiBaseline
from released_style.recipe import recipe_of

from dfkd_fast.benchmark.step_profiler import StepProfiler
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import ModelInfo


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe, cut down to batches that a core can do, and how much faster we mean to be."""

    method: str
    preset: str
    flags: tuple[str, ...]
    num_classes: int
    image_size: int
    goals: dict[tuple[str, str], float]
    """(variant, phase) -> the least ratio of the baseline's seconds to ours"""

    def config(self) -> TrainConfig[Any]:
        """The recipe."""
        return load_config(default_config(self.method), preset=self.preset, flags=self.flags)


CASES = {
    "nayer-wrn40_2-wrn16_1-32": Case(
        method="nayer",
        preset="cifar100",
        flags=("--student", "wrn16_1", "--student-lr", "0.001", "--synthesis-batch-size", "100", "--batch-size", "128"),
        num_classes=100,
        image_size=32,
        goals={
            ("fp32", "synthesis"): 2.4,
            ("bf16", "synthesis"): 4.8,
            ("fp32", "student"): 2.3,
            ("bf16", "student"): 4.4,
            ("fp32+cached", "student"): 9.5,
            ("bf16+cached", "student"): 15.0,
        },
    ),
    "muse-s-resnet34-resnet18-112": Case(
        method="muse-s",
        preset="imagenet",
        flags=("--synthesis-batch-size", "20", "--batch-size", "20"),
        num_classes=1000,
        image_size=224,
        goals={("bf16", "synthesis"): 5.0, ("bf16", "student"): 5.0},
    ),
    "cmi-wrn40_2-wrn16_1-32": Case(
        method="cmi",
        preset="cifar10",
        flags=("--synthesis-batch-size", "100", "--batch-size", "128", "--bank-size", "8192"),
        num_classes=10,
        image_size=32,
        goals={},
    ),
}


CACHED, FUSED = "cached", "fused"
"""the parts of a variant's name behind the precision for `--cache-teacher-logits` and `--bn.fused`"""
ANSWERS = 16
"""that are cached for each image"""
FULL_BATCHES = 32
"""student batches that the baseline's pool holds: more than there are turns"""


class Ours:
    """This package's steps, as a run takes them. A variant is a precision, or a precision with a mode of torch.compile,
    `cached`, where the teacher's answers are kept beside the images, or `fused`: `--bn.fused on`.
    """

    def __init__(self, case: Case, variant: str, folder: Path, *, device: str = "cpu") -> None:
        precision, _, more = variant.partition("+")
        compilation = "" if more in (CACHED, FUSED) else more
        runtime = make_runtime(
            device=device,
            precision=precision,
            channels_last=True,
            threads=1,
            compilation=compilation or "off",
            graphs=device != "cpu",
        )
        size = case.image_size
        info = ModelInfo(
            name="", num_classes=case.num_classes, image_size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
        )
        base = case.config()
        config = replace(
            base,
            cache_teacher_logits=ANSWERS if more == CACHED else 0,
            bn=replace(base.bn, fused="on" if more == FUSED else "off"),
        )
        self.profiler = StepProfiler(config, info, runtime, folder)
        self.profiler.method.train()
        self.profiler.fill(self.profiler.step_round())

    def synthesis(self) -> None:
        """A round of one step: a little more than a step."""
        self.profiler.step_round()

    def student(self) -> None:
        """A student step, its batch read from the pool."""
        self.profiler.student_step()


class Theirs:
    """The baseline's steps; on a CPU all on the one core: its DataLoader has no workers. `amp`: under bf16 autocast and
    channels-last.
    """

    def __init__(self, case: Case, folder: Path, *, device: str = "cpu", workers: int = 0, amp: bool = False) -> None:
        config, options = case.config(), {"device": device, "workers": workers, "amp": amp}
        recipe = recipe_of(config, num_classes=case.num_classes, full_size=case.image_size)
        self.baseline = (CmiBaseline if case.method == "cmi" else Baseline)(recipe, folder, **options)
        if isinstance(self.baseline, CmiBaseline):
            self.baseline.written = len(self.baseline.bank)  # as after the first rounds
        self.baseline.begin_round()
        self.baseline.synthesis_step()
        # the released codes keep the last batch of a pass, which is smaller: none of those among the samples
        while self.baseline.pool.written < FULL_BATCHES * recipe.batch_size:
            self.baseline.pool.add(self.baseline.best_images, self.baseline.labels)
        self.baseline.end_round()

    def synthesis(self) -> None:
        """A generator step."""
        self.baseline.student.eval()
        self.baseline.synthesis_step()

    def student(self) -> None:
        """A student step, its batch decoded from files."""
        self.baseline.student.train()
        self.baseline.student_step()
