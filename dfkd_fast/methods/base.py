"""The contract between a method and the loops.

A method drives: `synthesize` makes an epoch's images from top to bottom, in the order of its paper, and hands each
batch over by `yield`. The loop serves: what repeats within `Inner.run` (zero_grad, backward, the optimiser's step, the
best iterate, precision, capture), the pool, the student's steps, checkpoints.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from dfkd_fast.augment import Augment
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.methods.exchange import CollectedImages as CollectedImages
from dfkd_fast.methods.exchange import LossTerms as LossTerms
from dfkd_fast.methods.exchange import Needs as Needs
from dfkd_fast.methods.exchange import PoolPlan as PoolPlan
from dfkd_fast.methods.exchange import Setup as Setup
from dfkd_fast.methods.exchange import StudentReads as StudentReads
from dfkd_fast.methods.exchange import Supports as Supports
from dfkd_fast.methods.exchange import SynthBatch as SynthBatch
from dfkd_fast.methods.inner import Inner as Inner
from dfkd_fast.methods.inner import parameters_of as parameters_of
from dfkd_fast.methods.recipe import MethodConfig as MethodConfig
from dfkd_fast.methods.recipe import weighted_sum as weighted_sum
from dfkd_fast.models.teacher import NetOutput, unregistered
from dfkd_fast.pool.pool import PoolBatch


def augment_of(config: MethodConfig, setup: Setup) -> Augment:
    """What networks see of images in synthesis: the recipe's crops and flips."""
    pad, flip, scale = config.crop_padding, config.flip, config.crop_scale
    return Augment(setup.info, pad=pad, flip=flip, crop_scale=scale, global_batch=setup.global_batch)


class Method(nn.Module):
    """A data-free distillation algorithm: how images are made and what the student learns from them.

    A subclass holds its generator and its static buffers as usual. Teacher and student come in through `Setup` and are
    deliberately not registered, so that state_dict() is the method's own state and nothing else.
    """

    paper: ClassVar[str]
    """arXiv id, or venue and year"""
    loop: ClassVar[Literal["alternating", "stepwise"]] = "alternating"
    """alternating: images of a pool, epoch by epoch; stepwise: generator and student take turns every few steps"""
    needs: ClassVar[Needs] = Needs()
    supports: ClassVar[Supports] = Supports()

    config: MethodConfig

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.info, self.teacher, self.global_batch = setup.info, setup.teacher, setup.global_batch
        self.text, self.augment = setup.text, augment_of(config, setup)
        self._student = unregistered(setup.student)

    @property
    def student(self) -> nn.Module:
        """The student, frozen, as synthesis sees it: `Setup.student`."""
        return self._student[0]

    def rounds(self, epoch: int) -> int:
        """Synthesis rounds in this epoch, of all sizes of image. 0: none, or no more than what fills the pool."""
        raise NotImplementedError

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        """Make the images of an epoch: as many batches as it has rounds, each handed over when it is done; then, in the
        last warm-up epoch, the batches that fill the pool. What is yielded is read before the next batch is asked for.

        Host code between `Inner.run`s may draw random numbers; it writes what steps read in place.
        """
        raise NotImplementedError

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        """Loss terms of one student step on a batch from the pool: KL(teacher || student) at a temperature."""
        return {"kd": kd_kl(student.logits, teacher.logits, self.config.kd_temperature)}

    def pools(self) -> Sequence[PoolPlan]:
        """The plan of each size of image; one size, and a pool for all images of the recipe, by default."""
        config = self.config
        rounds = sum(self.rounds(epoch) for epoch in range(config.epochs))
        return (
            PoolPlan(
                image_size=self.info.image_size,
                rounds=self.rounds,
                synthesis_batch_size=config.synthesis_batch_size,
                batch_size=config.batch_size,
                capacity=rounds * config.synthesis_batch_size,
            ),
        )

    def check_run(self) -> None:
        """Raise UserError for what a step can do and a whole run cannot, or say what the user may not expect; called
        once, before anything is written. Nothing by default.
        """

    def student_reads(self) -> StudentReads:
        """What `student_loss` reads beside the logits; nothing by default."""
        return StudentReads()

    def student_head(self) -> nn.Module | None:
        """A module of the method that learns with the student, by the same optimiser (a projection, say); a
        `DeployedHead` is saved with it. None by default.
        """
        return None

    def student_variant(self) -> Hashable:
        """Called before each student step: what of Python's state it depends on. Steps of equal variants do the same to
        the same tensors, so that one captured step stands for all of them.

        May draw it, from `rng.SHARED`: ranks that capture their steps at different times wait for each other for ever.
        """
        return None

    def student_view(self, batch: PoolBatch) -> Tensor:
        """What teacher and student see of a batch (B, C, H, W), normalised: the pool's images, unless the method makes
        others. On the device, without gradients, under the autocast of the step.
        """
        return batch.images
