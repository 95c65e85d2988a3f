"""Student steps: the student learns from the teacher, on images of the pool, or on those that each step makes anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.augment import Mix, draw_mix, mixed, random_resized_crop
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.device.compilation import compiled
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import LossTerms, Method, SynthBatch, weighted_sum
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import FrozenNet, NetOutput
from dfkd_fast.optim import set_lr
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.sampling import ByPriority, EpochShuffle, Sampler
from dfkd_fast.training.capture import make_runner
from dfkd_fast.training.inner import OnStep
from dfkd_fast.training.int8_teacher import calibrate
from dfkd_fast.training.logit_cache import EXTRA, LogitCache
from dfkd_fast.training.student_recipe import combined, has_step_rates, student_lr, student_optimizer
from dfkd_kernels import PrioritySampler


class StudentSteps:
    """Runs student steps: teacher, student, the method's loss, an optimiser whose learning rate follows the recipe's
    schedule after warm-up. A subclass says where batches come from.
    """

    def __init__(self, student: nn.Module, *, method: Method, teacher: FrozenNet, runtime: Runtime) -> None:
        self.student, self.method, self.teacher, self.runtime = student, method, teacher, runtime
        self.reads, self.plans = method.student_reads(), {plan.image_size: plan for plan in method.pools()}
        maps = self.reads.student
        self.tapped = None if maps is None else FeatureExtractor(student, maps=maps, window=teacher.window)
        if self.reads.teacher:
            teacher.prepare(self.reads.teacher)
        self.batch_size = sum(plan.batch_size for plan in self.plans.values())
        self.priorities: dict[ImageSize, PrioritySampler] = {}
        """by image size, where the method has them"""
        self.crop_scale, self.pad, self.flip = method.config.student_crops
        if not 0 < self.crop_scale <= 1:
            raise UserError(f"--method.student-crop-scale {self.crop_scale}: choose a share above 0 and up to 1")
        self.optimizer = student_optimizer(method.config, student, method.student_head(), runtime)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.run_step = make_runner(self.step, runtime)
        self._losses = compiled(self._terms, runtime.compilation)

    def epoch(self, epoch: int, count: int, on_step: OnStep) -> None:
        """`count` student steps as those of an epoch."""
        self.begin_epoch(epoch)
        self.steps(count, on_step)
        self.end_epoch()

    def begin_epoch(self, epoch: int) -> None:
        """Before an epoch's first step."""
        self._at = epoch, 0
        set_lr(self.optimizer, student_lr(self.method.config, epoch))
        self.student.train()

    def steps(self, count: int, on_step: OnStep) -> None:
        """So many steps."""
        for inputs in self.inputs(count):
            if has_step_rates(self.method.config):
                epoch, taken = self._at
                set_lr(self.optimizer, student_lr(self.method.config, epoch, taken))
                self._at = epoch, taken + 1
            on_step(self.run_step(self.method.student_variant(), *inputs), self.batch_size * self.runtime.shares)

    def end_epoch(self) -> None:
        """After its last: each rank's BN has seen its own images; one student is saved and seen by synthesis."""
        if self.runtime.global_batch:  # it has seen those of all
            return
        head = self.method.student_head()
        self.runtime.average_buffers(self.student, *([] if head is None else [head]))

    def inputs(self, count: int) -> Iterator[tuple[Any, ...]]:
        """What each of `count` steps is given from outside, on the host."""
        raise NotImplementedError

    def batches(self, *inputs: Any) -> Mapping[ImageSize, PoolBatch]:
        """A step's batch of each image size, from its inputs. Part of the step, which may be captured."""
        raise NotImplementedError

    def step(self, *inputs: Any) -> LossTerms:
        """One step on a batch of each image size. Returns the detached terms, means over all images."""
        self.optimizer.zero_grad()
        parts = [self._losses(batch, self._mix(size)) for size, batch in self.batches(*inputs).items()]
        terms = parts[0] if len(parts) == 1 else self._mean(parts)
        self.scaler.scale(weighted_sum(terms, self.method.config)).backward()
        self._average_gradients(terms)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: term.detach() for name, term in terms.items()}

    def _average_gradients(self, terms: LossTerms) -> None:
        """The gradient of the global batch, and its terms: each rank has those of its own part, of equal size."""
        if self.runtime.world_size == 1:
            return
        learning = [value for group in self.optimizer.param_groups for value in group["params"]]
        gradients = [value.grad for value in learning if value.grad is not None]
        self.runtime.average([*gradients, *(term.detach() for term in terms.values())])

    def _terms(self, batch: PoolBatch, mix: Mix | None) -> LossTerms:
        with self.runtime.autocast():
            with torch.no_grad():
                view = self._cropped(self.method.student_view(batch))
                if mix is not None:
                    view = mixed(view, mix, global_batch=self.runtime.global_batch)
            teacher = self.answer(batch, view, mix)
            student = NetOutput(self.student(view)) if self.tapped is None else self.tapped(view)
            return self.method.student_loss(batch, teacher, student)

    def _cropped(self, view: Tensor) -> Tensor:
        if self.crop_scale == 1:
            return view
        return random_resized_crop(view, scale=self.crop_scale, global_batch=self.runtime.global_batch)

    def _mix(self, size: ImageSize) -> Mix | None:
        """How the images of a size are mixed in the next step; the same on all ranks of a global batch."""
        config, rows = self.method.config, self.runtime.global_batch
        if config.student_mix == "none":
            return None
        whole, device = self.plans[size].batch_size, self.runtime.device
        return draw_mix(config.student_mix, whole, size, alpha=config.student_mix_alpha, device=device).part(rows)

    def answer(self, batch: PoolBatch, view: Tensor, mix: Mix | None = None) -> NetOutput:
        """What the student learns from: what the teacher says of the view, which may be `mix`ed."""
        return self.teacher.answer(view, maps=self.reads.teacher, gradients=self.reads.teacher_gradients)

    def _mean(self, parts: list[LossTerms]) -> LossTerms:
        shares = [plan.batch_size / self.batch_size for plan in self.plans.values()]
        return {
            name: torch.stack([share * part[name] for share, part in zip(shares, parts, strict=True)]).sum()
            for name in parts[0]
        }


class StudentTrainer(StudentSteps):
    """Student steps on batches of the pool; with a `cache` of its answers, without the teacher."""

    def __init__(
        self,
        student: nn.Module,
        *,
        method: Method,
        teacher: FrozenNet,
        pool: MultiPool,
        runtime: Runtime,
        cache: LogitCache | None = None,
    ) -> None:
        super().__init__(student, method=method, teacher=teacher, runtime=runtime)
        self.pool, self.cache = pool, cache
        opened = {size: plan.opened(pool[size]) for size, plan in self.plans.items()}
        self.priorities = {size: tree for size, tree in opened.items() if tree is not None}
        view = AugmentSpec(info=method.info, pad=self.pad, flip=self.flip) if cache is None else cache.view
        self.views = dict.fromkeys(self.plans, view)

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        calibrate(self.teacher, self.pool[next(iter(self.plans))])

    def store(self, made: SynthBatch) -> None:
        """Put what a round made into the pool of its size, with its priorities where the method has them."""
        made, size = made.gathered(self.runtime.global_batch), ImageSize(*made.images.shape[-2:])
        pool = self.pool[size]
        kept = {} if self.cache is None else {EXTRA: self.cache.answers(made.images, pool)}
        slots = pool.add(made.images, made.labels, **made.extras, **kept)
        if size in self.priorities:
            assert made.initial_priorities is not None, "a pool with priorities needs those of new images"
            self.priorities[size].update(slots, made.initial_priorities[: len(slots)])

    def inputs(self, count: int) -> Iterator[tuple[dict[ImageSize, PoolBatch]]]:
        """Batches of the pool as it is now."""
        for batches in self.pool.batches(self._samplers(), self.views, count):
            yield (batches,)

    def batches(self, *inputs: Any) -> Mapping[ImageSize, PoolBatch]:
        found: Mapping[ImageSize, PoolBatch] = inputs[0]
        return found

    def answer(self, batch: PoolBatch, view: Tensor, mix: Mix | None = None) -> NetOutput:
        if self.cache is None:
            return super().answer(batch, view)
        found = self.cache.pick(batch)
        return found if mix is None else combined(found, mix, self.method.config, self.runtime.global_batch)

    def _samplers(self) -> dict[ImageSize, Sampler]:
        samplers: dict[ImageSize, Sampler] = {}
        for index, (size, plan) in enumerate(self.plans.items()):
            batch_size = plan.batch_size
            if size in self.priorities:
                samplers[size] = ByPriority(self.priorities[size], batch_size)
            else:
                seed = torch.initial_seed() + index  # another order for each pool
                held, repeats = len(self.pool[size]), self.pool[size].repeats
                repeats = None if repeats is None else repeats[:held]
                samplers[size] = EpochShuffle(held, batch_size, device=self.runtime.device, seed=seed, repeats=repeats)
        return samplers


def make_trainer(
    student: nn.Module,
    *,
    method: Method,
    teacher: FrozenNet,
    pool: MultiPool,
    runtime: Runtime,
    cache: LogitCache | None = None,
) -> StudentSteps:
    """What trains the student: on batches of the pool, or on what the method makes in each step."""
    if method.loop == "stepwise":
        return FreshTrainer(student, method=method, teacher=teacher, runtime=runtime)
    return StudentTrainer(student, method=method, teacher=teacher, pool=pool, runtime=runtime, cache=cache)


class FreshTrainer(StudentSteps):
    """Student steps on images that `Method.student_view` makes: generation, teacher and student are captured as one."""

    def __init__(self, student: nn.Module, *, method: Method, teacher: FrozenNet, runtime: Runtime) -> None:
        super().__init__(student, method=method, teacher=teacher, runtime=runtime)
        slots = torch.arange(self.batch_size, device=runtime.device)
        none = torch.empty(0, device=runtime.device)
        self._batch = PoolBatch(none, torch.full_like(slots, -1), slots, {})

    def inputs(self, count: int) -> Iterator[tuple[Any, ...]]:
        """Nothing: a step brings its own images."""
        for _ in range(count):
            yield ()

    def batches(self, *inputs: Any) -> dict[ImageSize, PoolBatch]:
        return {self.method.info.image_size: self._batch}
