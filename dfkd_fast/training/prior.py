"""`--pool.prior procedural:N`: pictures that are drawn, not synthesised, in the pool before a method's first image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dfkd_fast.augment import Augment
from dfkd_fast.config.combinations import prior_count
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.train import PoolConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Method, PoolPlan, SynthBatch
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.procedural.pictures import draw_pictures
from dfkd_fast.procedural.randaugment import check_channels, rand_augment
from dfkd_fast.procedural.selection import balanced_choice, vote_counts, vote_entropy
from dfkd_fast.rng import derive_seed

CANDIDATES = 4
"""pictures drawn for each one that is kept"""
OPERATIONS, MAGNITUDE = 4, 9
"""of RandAugment"""
CHUNK = 128
"""pictures kept at once"""


def plans_with_prior(config: PoolConfig, method: Method, world_size: int) -> list[PoolPlan]:
    """A method's pools with room for this rank's part of the pictures, which the sizes share as they share its images.

    Raises UserError for a method whose pool cannot begin with pictures.
    """
    count, plans = prior_count(config.prior), list(method.pools())
    if not count:
        return plans
    flag = f"--pool.prior {config.prior}"
    if method.loop == "stepwise":
        raise UserError(f"{flag}: this method has no pool; leave it out")
    if any(plan.extra_bytes for plan in plans):
        raise UserError(f"{flag}: this method's pool keeps maps of its generator, which pictures lack; leave it out")
    parts = world_size * method.global_batch.size
    if count % parts:
        raise UserError(f"{flag}: choose a multiple of {parts}, the number of processes")
    check_channels(method.info.in_chans, flag)
    count //= world_size
    whole = sum(plan.capacity for plan in plans)
    shares = [count * plan.capacity // whole for plan in plans]
    shares[-1] += count - sum(shares)
    return [plan._replace(capacity=plan.capacity + share) for plan, share in zip(plans, shares, strict=True)]


class Prior:
    """The pictures that a run's pools begin with; none without `--pool.prior`."""

    def __init__(self, config: PoolConfig, method: Method, teacher: FrozenNet, runtime: Runtime) -> None:
        plans = plans_with_prior(config, method, runtime.shares)
        pairs = zip(plans, method.pools(), strict=True)
        self.shares = {plan.image_size: plan.capacity - own.capacity for plan, own in pairs}
        self.method, self.teacher, self.runtime = method, teacher, runtime
        self.counts = torch.zeros(method.info.num_classes, dtype=torch.int64, device=runtime.device)
        """the teacher's votes for the pictures, by class (K,)"""

    def batches(self) -> Iterator[SynthBatch]:
        """The pictures, of classes as equal as candidates allow, with the teacher's votes as labels.

        A function of the phase's seed (`rng.seed_phase`). Images that nobody has judged have the priority 1.
        """
        rows = self.method.global_batch
        for size, share in self.shares.items():
            step = CHUNK * rows.size
            for first in range(0, share, step):
                seed = derive_seed(torch.initial_seed(), "prior", str(size), first)
                images, votes = self._chosen(min(step, share - first), size, seed)
                first_priorities = torch.ones(len(votes), device=votes.device)
                whole = (images, votes, first_priorities)
                images, votes, first_priorities = (rows.local_rows(part) for part in whole)
                yield SynthBatch(images, votes, initial_priorities=first_priorities)

    def lines(self) -> Sequence[str]:
        """What the run says of them, once they are there; nothing without them."""
        count = sum(self.shares.values())
        if not count:
            return ()
        entropy = vote_entropy(self.counts).item()
        return (
            f"pool: begins with {count:,} procedural pictures; entropy of the teacher's votes / ln K {entropy:.3f}",
        )

    def _chosen(self, count: int, size: ImageSize, seed: int) -> tuple[Tensor, Tensor]:
        shape = (self.method.info.in_chans, *size)
        generator = torch.Generator(self.runtime.device).manual_seed(seed)
        drawn = draw_pictures(CANDIDATES * count, shape, generator=generator)
        drawn = rand_augment(drawn, operations=OPERATIONS, magnitude=MAGNITUDE, seed=seed)
        candidates = drawn.to(self.runtime.master_dtype)
        normalize = Augment(self.method.info).to(candidates.device).normalize
        with torch.no_grad(), self.runtime.autocast():
            views = (normalize(part) for part in candidates.split(CHUNK))
            votes = torch.cat([self.teacher.logits(view).argmax(1) for view in views])
        chosen = balanced_choice(votes, self.counts, count)
        self.counts += vote_counts(votes[chosen], len(self.counts))
        return candidates[chosen], votes[chosen]
