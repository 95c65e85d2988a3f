"""Types that loop and method exchange: batches, plans of pools, what a method needs and reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch
from dfkd_fast.pool.pool import Policy, Pool
from dfkd_kernels import PrioritySampler

LossTerms = dict[str, Tensor]
"""scalar loss terms by name; term `x` is weighted by the config's `x_weight`"""

_NO_EXTRAS: Mapping[str, Tensor] = MappingProxyType({})


class SynthBatch(NamedTuple):
    """What one synthesis round leaves to the pool."""

    images: Tensor
    """(B, C, H, W) in [0, 1], not normalised"""
    labels: Tensor
    """(B,) int64, the class each image was made for, or is counted as"""
    extras: Mapping[str, Tensor] = _NO_EXTRAS
    """further (B, ...) tensors to keep with the images; a student batch has them under the same names"""
    initial_priorities: Tensor | None = None
    """(B,) first priorities of the images, where the method's pool has priorities"""

    def gathered(self, global_batch: GlobalBatch) -> SynthBatch:
        """What all ranks have made."""
        extras = {name: global_batch.all_gather(value) for name, value in self.extras.items()}
        initial_priorities = (
            None if self.initial_priorities is None else global_batch.all_gather(self.initial_priorities)
        )
        return SynthBatch(
            global_batch.all_gather(self.images), global_batch.all_gather(self.labels), extras, initial_priorities
        )


class CollectedImages(NamedTuple):
    """Real images that somebody has collected, for a method that is not data-free in the strict sense."""

    pixels: Tensor | ImageRows
    """(N, H, W, C) uint8; or rows of a file, which are read as they are needed"""
    labels: Tensor
    """(N,) int64"""

    def rows(self, first: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Images `first` to `end`, exclusive, (B, C, H, W) in [0, 1] on the device of `like`, in its dtype or float32,
        and their labels (B,).
        """
        part = self.pixels.read(range(first, end)) if isinstance(self.pixels, ImageRows) else self.pixels[first:end]
        dtype = torch.promote_types(like.dtype, torch.float32)
        images = part.to(like.device).permute(0, 3, 1, 2).to(dtype) / 255
        return images, self.labels[first:end].to(like.device)

    @classmethod
    def noise(cls, info: ModelInfo, count: int = 256) -> CollectedImages:
        """Made-up ones, where only the cost of a step matters."""
        pixels = torch.randint(256, (count, *info.image_size, info.in_chans), dtype=torch.uint8)
        return cls(pixels, torch.arange(count) % info.num_classes)


class Setup(NamedTuple):
    """What a method is given to build itself from."""

    teacher: FrozenNet
    student: nn.Module
    """the student's frozen alias: shares its storage, eval, no weight gradients"""
    info: ModelInfo
    """what teacher and student agree on: classes, image size, mean and std"""
    label_embeddings: Tensor
    """(K, D), what a class is called (`--text`)"""
    text: str = "file"
    """where they are from, a name of `text.SOURCES`; `file`: of unknown origin"""
    collected: CollectedImages | None = None
    """this rank's part of `--collected`; given where `Method.needs.real_images`"""
    global_batch: GlobalBatch = LOCAL_BATCH
    """this rank's rows of the batch, where all ranks make one; the config's sizes are the whole batch's then"""


class Needs(NamedTuple):
    """What a method cannot do without."""

    batchnorm: bool = True
    """the teacher's BatchNorm statistics, which it matches"""
    norm_inputs: bool = False
    """what these layers read, too: giving up the term that matches their statistics is not enough to do without"""
    text: Sequence[str] = ()
    """values of `--text` that it takes; none: it does not ask what classes are called"""
    real_images: bool = False
    """`--collected`: then it is not data-free in the strict sense"""


class Supports(NamedTuple):
    """Ways to run a method that not every one allows."""

    global_batch: bool = False
    """`--bn.scope global`: all ranks together are what one process is, by `Setup.global_batch`"""
    micro_batches: bool = False
    """`--synthesis-micro-batches`: a batch is computed in parts; all that its steps keep has a row for each image"""
    without_student: bool = False
    """`dfkd-fast synth`: warm-up epochs make images without asking the student anything"""


class PoolPlan(NamedTuple):
    """The images of one size: how many are made, and how the pool keeps them."""

    image_size: ImageSize
    """height and width in pixels"""
    rounds: Callable[[int], int]
    """synthesis rounds of this size in an epoch (0-based), each of which leaves one batch"""
    synthesis_batch_size: int
    """images in such a batch"""
    batch_size: int
    """images of this size in a student step; the step's loss is the mean over all sizes"""
    capacity: int
    """most images that the pool holds; 0: there is none, each student step has images of its own"""
    policy: Policy = "append"
    """what the pool does when it is full, unless --pool.policy says otherwise"""
    extra_bytes: int = 0
    """what the extras of one image take in the pool, where that is more than a few numbers"""
    fill_images: int = 0
    """images that follow the warm-up's last round without steps: what a generator makes when it has learned, real ones
    """
    fill_batches: int = 0
    """batches that they come in, of which any may be smaller than `synthesis_batch_size`"""
    labels_are_votes: bool = False
    """whether labels are what the teacher takes images for: then how evenly they are spread is reported"""
    opened: Callable[[Pool], PrioritySampler | None] = lambda _: None
    """called once, before the first round, with the pool; returns the priorities that student batches are drawn by,
    which the loop saves and fills with `SynthBatch.initial_priorities`; None: uniformly, without replacement
    """


class StudentReads(NamedTuple):
    """What `Method.student_loss` reads beside the logits."""

    student: Sequence[str] | None = None
    """the student's features and the maps of these modules: it must be a network that `FeatureExtractor` takes"""
    teacher: Sequence[str] = ()
    """modules of the teacher whose maps are read"""
    teacher_features: bool = False
    """whether its features are"""
    teacher_gradients: bool = False
    """whether gradients of its logits with respect to these maps are taken"""
    labels: bool = False
    """the images' labels"""


@runtime_checkable
class DeployedHead(Protocol):
    """A student head that is part of the network that is saved and evaluated."""

    def deploy(self, student: nn.Module) -> nn.Module:
        """The whole network."""

    def deployed_name(self, student: str) -> str:
        """What `load_model` calls that network, where the student's own name is `student`."""
