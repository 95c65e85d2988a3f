"""MUSE: Large-Scale Data-Free Knowledge Distillation for ImageNet via Multi-Resolution Data Generation.

Tran, Le, Le, Cai, Harandi, Phung. 2024. arXiv:2411.17046. Algorithm 1; no code is released. MUSE-S makes images of one
size, MUSE of several. What the paper leaves open is taken from NAYER's and LANDER's releases, on which it builds;
docs/methods/muse.md lists each such decision.
Distributed: generators, BN moments and parts of the pools per rank; `--bn.scope global`: one of each, on all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.methods.base import (
    LossTerms,
    Method,
    Needs,
    PoolPlan,
    Setup,
    StudentReads,
    Supports,
    SynthBatch,
)
from dfkd_fast.methods.muse.class_embedding import ClassEmbedding
from dfkd_fast.methods.muse.config import MuseConfig as MuseConfig
from dfkd_fast.methods.muse.config import MuseSConfig
from dfkd_fast.methods.muse.scale import MuseScale, check_centres, parts
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.text.label_embeddings import CENTRES, SOURCES

CLIP_SCALE = ("clip", "class-index", "file")
"""origins of embeddings that keep their scale: CLIP's, and what a user brings"""


class Muse(Method):
    """MUSE at any number of image sizes: a generator for each, a student that learns from all (Eqs. 7 and 8)."""

    paper = "arXiv:2411.17046"
    needs, supports = Needs(text=(*SOURCES, CENTRES)), Supports(global_batch=True, micro_batches=True)

    config: MuseSConfig

    def __init__(self, config: MuseSConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        setup.teacher.window.decay = config.window_decay
        student, centres = FeatureExtractor(setup.student, window=setup.teacher.window), setup.label_embeddings
        learned = setup.text == CENTRES
        if learned:
            centres = centres.new_zeros(len(centres), setup.teacher.class_weights.shape[1])
        self.embedding = ClassEmbedding(
            student.width(setup.info),
            centres,
            radii=(config.inner_radius, config.outer_radius),
            rescale={"always": True, "never": False}.get(config.rescale, setup.text not in CLIP_SCALE),
            learned=learned,
            per_sample=config.hinge_per_sample,
            flag=f"--text {setup.text}",
        )
        self._sizes = tuple(MuseScale(part, setup, student, self.embedding) for part in parts(config))
        self.scales = nn.ModuleList(self._sizes)

    def check_run(self) -> None:
        check_centres(self.config, self.text, self._sizes[0])

    def pools(self) -> Sequence[PoolPlan]:
        return [scale.pool_plan() for scale in self._sizes]

    def rounds(self, epoch: int) -> int:
        return sum(scale.plan.rounds(epoch) for scale in self._sizes)

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        for scale in self._sizes:  # one size after the other
            yield from scale.synthesize(epoch)

    def student_reads(self) -> StudentReads:
        return StudentReads(())  # the features alone

    def student_head(self) -> nn.Module:
        return self.embedding.side

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        terms = {"kd": kd_kl(student.logits, teacher.logits, self.config.kd_temperature)}  # Eq. 2
        if self.config.ed_weight:
            whole = map(self.global_batch.all_gather, (student.pooled(), batch.labels))
            terms["ed"] = self.embedding.attraction(*whole)  # Eq. 10
        return terms


class MuseS(Muse):
    """MUSE at one image size."""
