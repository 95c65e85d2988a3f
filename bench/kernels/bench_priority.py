"""Drawing from and writing to a priority tree, at 10^6 and 10^7 slots, and torch.multinomial at 10^6."""

from __future__ import annotations

import itertools

import torch
from report import Goal, Limit

from dfkd_kernels import PrioritySampler

BATCH = 256
DRAWS = 4096  # batches of slots to write, so that the tree's memory is as cold as in training
SMALL, LARGE = 10**6, 10**7


def filled(capacity: int, device: torch.device) -> PrioritySampler:
    sampler = PrioritySampler(capacity, device=device)
    sampler.update(torch.arange(capacity, device=device), torch.rand(capacity, device=device) ** 4)
    return sampler


def bench_sampler(compare, device):
    samplers = {capacity: filled(capacity, device) for capacity in (SMALL, LARGE)}
    deltas = torch.rand(BATCH, device=device)
    variants = {}
    for capacity, sampler in samplers.items():
        batches = itertools.cycle(torch.randint(0, capacity, (DRAWS, BATCH), device=device).unbind())
        variants[f"sample, {capacity:.0e}"] = lambda sampler=sampler: sampler.sample(BATCH)
        variants[f"update, {capacity:.0e}"] = lambda sampler=sampler, batches=batches: sampler.update(
            next(batches), deltas
        )
    limits, goals = (), ()
    if device.type == "cpu":
        limits = (Limit(variant="sample, 1e+06", microseconds=100), Limit(variant="update, 1e+06", microseconds=30))
        goals = tuple(
            Goal(numerator=f"{call}, 1e+07", denominator=f"{call}, 1e+06", bound=2.0, sense="at most")
            for call in ("sample", "update")
        )
    compare("PrioritySampler", variants, shape=(BATCH,), dtype=torch.float32, limits=limits, goals=goals, inner=5)


def bench_against_multinomial(compare, device):
    sampler = filled(SMALL, device)
    variants = {
        "torch.multinomial": lambda: torch.multinomial(sampler.leaves, BATCH, replacement=True),
        "ours": lambda: sampler.sample(BATCH),
    }
    goals = (Goal(numerator="torch.multinomial", denominator="ours", bound=1.0),)
    compare("PrioritySampler.sample", variants, shape=(BATCH,), dtype=torch.float32, goals=goals, inner=5)
