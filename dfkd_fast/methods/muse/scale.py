"""MUSE's making of images of one size (arXiv:2411.17046, sections 3.2 and 3.3); `muse` puts the sizes together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.generators.noisy import NoisyEmbeddingGenerator
from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.losses.cam import cam_margin
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import Inner, LossTerms, PoolPlan, Setup, SynthBatch, augment_of, parameters_of
from dfkd_fast.methods.muse.budget import RoundPlan, data_ratio_capacity, scaled
from dfkd_fast.methods.muse.class_embedding import ClassEmbedding
from dfkd_fast.methods.muse.config import MuseSConfig
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.statistics import PoolStatistics
from dfkd_fast.models.teacher import unregistered
from dfkd_fast.rng import labels_in_turn
from dfkd_fast.text.label_embeddings import CENTRES


class MuseScale(nn.Module):
    """What makes the images of one size: NAYER's generator, with CAM and embedding terms (Eq. 11)."""

    labels: Tensor
    class_order: Tensor
    label_embeddings: Tensor

    def __init__(self, config: MuseSConfig, setup: Setup, student: FeatureExtractor, embedding: ClassEmbedding) -> None:
        super().__init__()
        self.config = config
        size = scaled(setup.info.image_size, config.image_sizes[0])
        self.info, self.teacher = replace(setup.info, image_size=size), setup.teacher
        self.global_batch = setup.global_batch
        for network in (setup.teacher, student):
            network.check_size(size, "--method.image-sizes")
        self._shared = unregistered(student, embedding)
        sizes = {"noise_features": config.noise_features, "width": config.generator_width}
        sizes |= {"batch_size": config.synthesis_batch_size}
        embedding_dim, rows = setup.label_embeddings.shape[1], setup.global_batch
        self.generator = NoisyEmbeddingGenerator.of(self.info, embedding_dim, **sizes, global_batch=rows)
        self.augment = augment_of(config, setup)
        self.statistics = PoolStatistics(setup.teacher.targets, config.bn_momentum)
        self.class_weights = setup.teacher.class_weights if config.cam_weight else None
        self.inner = Inner(config, self.step, parameters_of(self.generator, config.generator_lr))
        self.plan = round_plan(config, setup.info.image_size, size)
        self.register_buffer("label_embeddings", setup.label_embeddings, persistent=False)
        self.register_buffer("class_order", torch.arange(self.info.num_classes))
        self.register_buffer("labels", torch.zeros(config.synthesis_batch_size, dtype=torch.int64), persistent=False)

    def pool_plan(self) -> PoolPlan:
        """A pool for the budget of this size."""
        config = self.config
        sizes = (config.synthesis_batch_size, config.batch_size, self.plan.capacity)
        return PoolPlan(self.info.image_size, self.plan.rounds, *sizes, policy="ring" if config.fifo else "cap")

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        """Algorithm 1, lines 4 to 9, for this size."""
        config, adversarial = self.config, epoch >= self.config.warmup_epochs  # as in NAYER's release
        for index in range(self.plan.rounds(epoch)):
            if index == 0 and self.is_reborn(epoch):
                self.generator.reset_parameters()
            self.generator.noise.reset_parameters()  # line 5
            number = self.plan.before(epoch) + index
            self.labels.copy_(labels_in_turn(len(self.labels), self.class_order, number))
            images = self.inner.run(config.synthesis_steps, adversarial=adversarial)
            self.statistics.update()
            self.learn_centres(images, number)
            yield SynthBatch(images, self.global_batch.local_rows(self.labels))

    def is_reborn(self, epoch: int) -> bool:
        """Whether an epoch begins with a whole new generator: `generator_life` epochs have begun since the last."""
        life, last = self.config.generator_life, self.plan.last_made(epoch)
        return bool(life) and (last is None or last // life != epoch // life)

    def learn_centres(self, images: Tensor, number: int) -> None:
        """Section 3.3: class centres where there is no label text. Round `number` (0-based) of this size: behind the
        first pass over the classes all are known.
        """
        _, embedding = self._shared
        passes = -(-self.info.num_classes // len(self.labels))
        if embedding.learned and number < passes:
            with self.inner.inference():
                seen = self.teacher(self.augment.normalize(images), moments=False)
                features = self.global_batch.all_gather(seen.pooled())
                embedding.learn(features, self.labels, last=number + 1 == passes)

    def step(self, *, adversarial: bool) -> tuple[Tensor, LossTerms]:
        """Images and the terms of Eq. 11."""
        student, embedding = self._shared
        labels = self.global_batch.local_rows(self.labels)
        images = self.generator(self.label_embeddings[self.labels])  # Eq. 4
        view = self.augment(images)
        teacher = self.teacher(view)
        terms = {
            "ce": label_ce(teacher.logits, labels),  # Eq. 3, alpha_ce
            "bn": self.statistics.loss(teacher.moments),  # Eq. 3, alpha_bn
        }
        if self.class_weights is not None:
            peak, sigma = self.config.cam_peak, self.config.cam_sigma
            terms["cam"] = cam_margin(teacher.features, self.class_weights, labels, peak, sigma)  # Eq. 6
        if adversarial:
            seen = student(view)
            terms["adv"] = disagreement(seen.logits, teacher.logits)  # Eq. 3, alpha_adv
            if self.config.aed_weight:
                gather, whole = self.global_batch.all_gather, self.global_batch.whole(self.labels)
                if self.config.aed_network == "teacher":  # the sentence above Eq. 11
                    terms["aed"] = embedding.repulsion_in_teacher(gather(teacher.pooled()), whole)
                else:
                    terms["aed"] = embedding.repulsion(gather(seen.pooled()), whole)  # Eq. 12
        return images, terms


def parts(config: MuseSConfig) -> list[MuseSConfig]:
    """A recipe for each image size: its share of the batches, an equal share of the budget."""
    sizes, shares = config.image_sizes, config.batch_shares
    if len(sizes) != len(shares) or len(set(sizes)) < len(sizes):
        given = " ".join(map(str, sizes))
        raise UserError(f"--method.image-sizes {given}: choose different sizes, with one of --method.batch-shares each")
    divided = [share / sum(shares) for share in shares]
    return [
        replace(
            config,
            image_sizes=(size,),
            batch_shares=(1,),
            data_ratio=config.data_ratio / len(sizes),
            synthesis_batch_size=round(config.synthesis_batch_size * share),
            batch_size=round(config.batch_size * share),
        )
        for size, share in zip(sizes, divided, strict=True)
    ]


def round_plan(config: MuseSConfig, full_size: ImageSize, image_size: ImageSize) -> RoundPlan:
    """Section 4.2: as many images as have the pixels of the data ratio's share of full-resolution images."""
    ratio = config.data_ratio / 100
    return RoundPlan(
        capacity=data_ratio_capacity(config.full_images, ratio, full_size=full_size, image_size=image_size),
        batch_size=config.synthesis_batch_size,
        epochs=config.epochs,
        most=config.rounds,
        endless=config.fifo,
    )


def check_centres(config: MuseSConfig, text: str, first: MuseScale) -> None:
    """Raise UserError where class centres are needed and not learned, or not all of them before the student starts:
    they are the features of the first images of each class, which `first` makes.
    """
    if config.aed_network == "teacher" and not config.aed_weight:
        raise UserError("--aed-network teacher: has no effect with --aed-weight 0; leave one of them out")
    if text != CENTRES:
        if config.aed_network == "teacher":
            raise UserError(
                f"--aed-network teacher: --text {text} gives vectors in another space than the teacher's "
                f"features, and no map between them is published; choose --text {CENTRES} or --aed-network student"
            )
        return
    made = first.plan.before(config.warmup_epochs) * first.config.synthesis_batch_size
    if made < first.info.num_classes:
        raise UserError(
            f"--text {CENTRES}: the warm-up shows {made} of {first.info.num_classes} classes; "
            "give more --method.warmup-epochs, or another --text"
        )
