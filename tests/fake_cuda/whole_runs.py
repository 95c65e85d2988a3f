"""A method's whole run on the fake card: `training.train.train` itself, few steps, without what reads values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from card import fake_card
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from watch import Watch

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.data.splits import ImageSet
from dfkd_fast.files import digests
from dfkd_fast.methods.inner import images_of
from dfkd_fast.models.factory import load_model
from dfkd_fast.parallel import group as process_group
from dfkd_fast.pool import build
from dfkd_fast.training import capture, evaluate, train
from dfkd_fast.training import run as run_parts
from dfkd_fast.training.assemble import load_method
from dfkd_fast.training.capture import CapturedSteps, CudaGraphs
from dfkd_fast.training.checkpoints import checkpoint
from dfkd_fast.training.inner import InnerLoop
from dfkd_fast.training.real_images import collected

FEW = {"epochs": 2, "warmup_epochs": 1, "warmup_rounds": 1, "rounds": 1, "synthesis_steps": 3, "low_res_steps": 3}
FEW |= {"student_steps": 3, "student_steps_per_round": 3, "lr_warmup_steps": 0}
OWN: dict[str, dict[str, Any]] = {
    "deepinversion": {"synthesis_steps": 6},
    "hidfd": {"epochs": 3, "synthesis_steps": 6, "synthetic_images": 200},
    "muse": {"full_images": 8 * 260},
    "muse-s": {"full_images": 8 * 260},
    # drawing takes many operators, and what draws a mixture's shares has no fake form
    "procedural": {"synthesis_batch_size": 32, "boundary_pairs": 16, "candidates": 1, "student_mix": "none"},
    "spaceshipnet": {"student_steps": 12},
}
"""what else a method needs for each of its steps to be captured and then replayed: a warm-up, a capture, a replay"""
PRESETS = {"fast": "cifar10-fast5"}
SHAPE: dict[str, Any] = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)}

SMALL: dict[str, Any] = {"precision": "fp16", "rank": 1, "ranks": 2, "teacher": "cnn", "student": "cnn_s"}
"""the second of two ranks in fp16, on networks that are quickly gone through"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Which run."""

    method: str
    precision: str = "bf16"
    rank: int = 0
    ranks: int = 1
    teacher: str = "wrn40_2"
    student: str = "wrn16_2"
    optimizer: str = "auto"
    bn_scope: str = "rank"


def run(case: Case, watch: Watch, folder: Path, *, plant: Callable[[Any], None] | None = None) -> None:
    """Train as the case says, below `watch`; `plant` may spoil the assembled run's method first."""
    config = _config(case, folder)
    with contextlib.ExitStack() as stack:
        if case.ranks > 1:
            stack.enter_context(_ranks(case))
        stack.enter_context(fake_card(watch))
        stack.enter_context(without_values(watch))
        if plant is not None:
            real = train.make_method

            def planted(*args: Any) -> Any:
                method = real(*args)
                plant(method)
                return method

            stack.enter_context(patch.object(train, "make_method", planted))
        train.train(config)


def _config(case: Case, folder: Path) -> TrainConfig[Any]:
    cls = load_method(case.method)
    flags = ["--device", "cuda", "--precision", case.precision, "--optim.impl", case.optimizer]
    flags += ["--bn.scope", case.bn_scope, *(["--text", "orthogonal"] if cls.needs.text else [])]
    config = load_config(default_config(case.method), preset=PRESETS.get(case.method, "cifar10"), flags=flags)
    names = {item.name for item in fields(config.method)}
    few = {name: value for name, value in (FEW | OWN.get(case.method, {})).items() if name in names}
    if cls.loop == "stepwise":
        few["warmup_epochs"] = min(few["warmup_epochs"], config.method.warmup_epochs)  # none where the recipe has none
    return replace(
        config,
        method=replace(config.method, **few),
        teacher=case.teacher,
        student=case.student,
        data="fake",
        collected="digits" if cls.needs.real_images else None,
        collected_share=1.0,
        train_teacher=False,
        compile="off",
        checkpoint=replace(config.checkpoint, every=100),  # the last epoch's alone
        run_dir=folder / f"{case.method}-{case.precision}-{case.rank}-of-{case.ranks}",
        eval=replace(config.eval, every=0),
        log=replace(config.log, images_per_class=0),
    )


@contextlib.contextmanager
def _ranks(case: Case) -> Iterator[None]:
    distributed.init_process_group("fake", rank=case.rank, world_size=case.ranks, store=FakeStore())
    try:
        with patch.object(process_group, "patient_group", lambda: None):
            yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def without_values(watch: Watch) -> Iterator[None]:
    """What reads or writes values is left out; steps are captured where the watch sees it, after one step of the first
    variant as it is: states and gradients have their memory then.
    """

    class Watched(CapturedSteps):
        def __call__(self, variant: Hashable, *inputs: Any) -> Any:
            watch.step = _step_name(self.step.__self__, variant)  # type: ignore[attr-defined]
            capture.WARM_UP_STEPS = int(not self._variants)
            try:
                return super().__call__(variant, *inputs)
            finally:
                watch.step = ""

    class WatchedGraphs(CudaGraphs):
        def record(self, step: Any) -> Any:
            replay, terms = super().record(step)
            watch.check_lifetimes(list(terms.values()))
            return replay, terms

    replaced: dict[tuple[Any, str], Any] = {
        (capture, "WARM_UP_STEPS"): 1,
        (capture, "CapturedSteps"): Watched,
        (capture, "CudaGraphs"): WatchedGraphs,
        (build, "Journal"): NoJournal,
        (evaluate, "load_test_split"): lambda *_, **__: _images(10),
        (evaluate, "_summarised"): lambda top, _images: evaluate.Evaluation(0.5, 0.9, (), top[:, 0]),
        (collected, "load_split"): lambda *_, **__: _images(5000),
        (run_parts, "count_step_flops"): lambda *_, **__: None,
        (train, "load_teacher"): lambda config, *_, **__: load_model(
            config.teacher, num_classes=10, image_size=32, **SHAPE
        ),
        (checkpoint, "save"): _save,
        (digests, "raw"): lambda value: memoryview(b""),
    }
    with contextlib.ExitStack() as stack:
        for (owner, name), value in replaced.items():
            stack.enter_context(patch.object(owner, name, value))
        yield


def _step_name(owner: Any, variant: Hashable) -> str:
    """The table's name: of synthesis with the images' size, once it is known, what of several inner optimisations this
    is, and the values of the step's keyword arguments.
    """
    if not isinstance(owner, InnerLoop):
        return "student" if variant is None else f"student, variant {variant}"
    size = "" if owner.best is None else f" {images_of(owner.best).shape[-1]} px"
    part = owner.inner.step.__name__.removesuffix("step").rstrip("_")
    values = tuple(value for _, value in variant)  # type: ignore[attr-defined]
    told = [part] if part else []
    if values:
        told.append(f"variant {values[0] if len(values) == 1 else values}")
    return ", ".join([f"synthesis{size}", *told])


def _images(count: int) -> ImageSet:
    pixels = torch.zeros(count, 32, 32, 3, dtype=torch.uint8)
    names = tuple(map(str, range(10)))
    return ImageSet("fake", pixels, torch.zeros(count, dtype=torch.int64), names, digest="")


def _save(tensors: dict[str, Tensor], metadata: Any = None) -> bytes:
    assert not any(tensor.is_cuda for tensor in tensors.values()), "a file takes tensors of the host"
    return b""


class NoJournal:
    """A pool's record on a disk that keeps nothing."""

    def __init__(self, folder: Path, **_: Any) -> None:
        self.folder, self.count = folder, 0

    def append(self, *_: Any) -> None: ...
    def close(self) -> None: ...
    def drain(self) -> None: ...
    def release(self, count: int) -> None: ...
    def restore(self, count: int) -> None: ...
    def flush(self) -> int:
        return 0
