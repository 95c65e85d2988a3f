"""The contract between a method and the loops.

A method says what one synthesis round resets, what one synthesis step computes and what the student learns. The loop
owns everything that repeats: zero_grad, backward, the optimiser step and its reset, the best iterate, precision,
logging, the pool.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from dfkd_fast.methods.exchange import CollectedImages as CollectedImages
from dfkd_fast.methods.exchange import LossTerms as LossTerms
from dfkd_fast.methods.exchange import Setup as Setup
from dfkd_fast.methods.exchange import SynthBatch as SynthBatch
from dfkd_fast.methods.recipe import MethodConfig as MethodConfig
from dfkd_fast.methods.recipe import weighted_sum as weighted_sum
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.optim import OptimizerSpec
from dfkd_fast.parallel.global_batch import LOCAL_BATCH
from dfkd_fast.pool.pool import Policy, Pool, PoolBatch
from dfkd_kernels import PrioritySampler


class Method(nn.Module):
    """A data-free distillation algorithm: how images are made and what the student learns from them.

    A subclass holds its generator and its static buffers as usual; teacher and student twin come in through `Setup`
    and are deliberately not registered, so that state_dict() is the method's own state and nothing else.
    """

    loop: ClassVar[Literal["alternating", "stepwise"]] = "alternating"
    needs_data: ClassVar[bool] = False
    """True where real images are part of the method: then it is not data-free in the strict sense"""
    needs_batchnorm: ClassVar[bool] = True
    """whether the method matches the teacher's BatchNorm statistics"""
    synchronized: ClassVar[bool] = False
    """one generator for all ranks: gradients are averaged in each step, buffers after the rounds; else one for each"""
    supports_global_batch: ClassVar[bool] = False
    """whether `--bn.scope global` makes all ranks together what one process is, by `Setup.global_batch`"""
    splits_batches: ClassVar[bool] = False
    """whether `--synthesis-micro-batches` may compute a batch in parts: all that is kept of a step is images"""
    turns: ClassVar[int] = 1
    """steps in turn, unlike each other, that make one iteration (a GAN: 2); what a step costs is their mean"""
    text_sources: ClassVar[Sequence[str]] = ()
    """values of `--text` that the method takes; none: it does not ask what classes are called"""
    text: str = "file"
    """`Setup.text`, where the method depends on it"""
    paper: ClassVar[str]
    """arXiv id"""
    adversarial = False
    """whether the student takes part in the steps of this round; set by `begin_round`"""
    pool_policy: Policy = "append"
    """what the pool does when it is full, unless --pool.policy says otherwise"""
    teacher_maps: Sequence[str] = ()
    """modules of the teacher whose maps `student_loss` reads"""
    reads_features = False
    """whether `student_loss` reads the teacher's features"""
    global_batch = LOCAL_BATCH
    """`Setup.global_batch`"""
    teacher_gradients = False
    """whether `student_loss` takes gradients of the teacher's logits with respect to these maps"""

    config: MethodConfig
    info: ModelInfo

    def sources(self) -> Sequence[Method]:
        """What makes the images: the method itself, or one part of it for each image size (`info.image_size`).

        Each source has its own generator, batch sizes (`config`), optimiser state and pool. A student step reads a
        batch of each; its loss is their mean, weighted by their sizes.
        """
        return (self,)

    def open_pool(self, pool: Pool) -> PrioritySampler | None:
        """Called once, before the first round, with the pool.

        Returns the priorities that student batches are drawn by, which the loop saves and fills with
        `SynthBatch.initial_priorities`; None: batches are drawn uniformly without replacement.
        """
        return None

    def rounds(self, epoch: int) -> int:
        """Synthesis rounds in this epoch. 0: no synthesis; a method that makes all images first has none after
        warm-up.
        """
        raise NotImplementedError

    def synthesis_optimizer(self) -> OptimizerSpec | None:
        """What a round optimises. Built once; its state is reset in place at the start of each stage. None: nothing
        starts anew, `lasting_optimizer` has it all.
        """
        raise NotImplementedError

    def lasting_optimizer(self) -> OptimizerSpec | None:
        """What is stepped along with it but never reset: its state lasts over the rounds and is saved. None by
        default.
        """
        return None

    def stages(self) -> Sequence[int]:
        """Steps of each stage of a round, together `synthesis_steps`. Optimiser state and best iterate start anew with
        a stage; what enters the pool is the best of the last one. A round is one stage by default.
        """
        return (self.config.synthesis_steps,)

    def lr_scale(self, step: int, steps: int) -> float:
        """Factor on the learning rates of `synthesis_optimizer` at `step` (0-based) of a stage of `steps`."""
        return 1.0

    def lasting_lr_scale(self, epoch: int, index: int) -> float:
        """Factor on the learning rates of `lasting_optimizer` in round `index` of an epoch."""
        return 1.0

    def begin_round(self, epoch: int, index: int) -> None:
        """In-place resets and new labels, before the first step of round `index`. Host code; may draw random
        numbers.
        """
        raise NotImplementedError

    def begin_stage(self, stage: int) -> None:
        """Host code before the first step of stage `stage` (0-based): another resolution, say. Nothing by default."""

    def begin_step(self, step: int) -> None:
        """Host code before step `step` (0-based) of a stage: whose turn it is, say. Nothing by default."""

    def synthesis_step(self) -> tuple[Tensor, LossTerms]:
        """Images (B, C, H, W), in [0, 1] unless the generator has no bounds, and the loss terms of one step.

        A pure function of device tensors: static shapes, no host synchronisation, no optimiser, so that it can be
        captured.
        """
        raise NotImplementedError

    def step_variant(self) -> Hashable:
        """What of Python's state the next `synthesis_step` depends on: whether the student takes part.

        Steps of equal variants do the same to the same tensors, so that one captured step stands for all of them.
        """
        return self.adversarial

    def keep_best(self, better: Tensor) -> None:
        """On the device, before the optimiser's step: `better` (0-dim bool) says whether this step is the best so far.

        For what is kept beside the images, by `torch.where`. Nothing by default.
        """

    def end_step(self) -> None:
        """After the optimiser's step, on the device (a meta-gradient, say). Nothing by default."""

    def end_round(self, best_images: Tensor) -> SynthBatch:
        """After the last step: update running statistics, and say what goes into the pool. Without gradients, under
        the autocast of the steps.
        """
        raise NotImplementedError

    def fill_batches(self) -> int:
        """Batches that go into the pool once the warm-up's rounds are over, without steps: what a generator makes when
        it has learnt, real images. None by default.
        """
        return 0

    def fill(self, index: int) -> SynthBatch:
        """Batch `index` (0-based) of them, of up to `synthesis_batch_size` images. Without gradients."""
        raise NotImplementedError

    def fill_images(self) -> int:
        """Images in all of them."""
        return self.fill_batches() * self.config.synthesis_batch_size

    def student_steps(self, epoch: int) -> int:
        """Student steps in this epoch."""
        return self.config.student_steps

    def student_maps(self) -> Sequence[str] | None:
        """What `student_loss` reads of the student beside its logits: the features, and the maps of these modules.

        None, the default: nothing. Else the student must be a network that `FeatureExtractor` takes.
        """
        return None

    def student_head(self) -> nn.Module | None:
        """A module of the method that learns with the student, by the same optimiser (a projection, say). None by
        default.
        """
        return None

    def student_variant(self) -> Hashable:
        """Called before each student step: what of Python's state it depends on, as `step_variant`. May draw it, from
        `rng.SHARED`: ranks that capture their steps at different times wait for each other for ever.
        """
        return None

    def student_view(self, batch: PoolBatch) -> Tensor:
        """What teacher and student see of a batch (B, C, H, W), normalised: the pool's images, unless the method makes
        others of its extras. On the device, without gradients, under the autocast of the step.
        """
        return batch.images

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        """Loss terms of one student step on a batch from the pool."""
        raise NotImplementedError

    def deploy(self, student: nn.Module) -> nn.Module:
        """The network that is saved and evaluated: the student itself unless the method adds to it."""
        return student

    def deployed_name(self, student: str) -> str:
        """What `load_model` calls that network, where the student's own name is `student`."""
        return student

    def check_run(self) -> None:
        """Raise UserError for what a step can do and a whole run cannot; called once, before anything is written."""

    def extra_bytes(self) -> int:
        """What the extras of one image take in the pool, where that is more than a few numbers."""
        return 0

    def pool_capacity(self) -> int:
        """Images that the whole recipe puts into the pool."""
        rounds = sum(self.rounds(epoch) for epoch in range(self.config.epochs))
        return rounds * self.config.synthesis_batch_size
