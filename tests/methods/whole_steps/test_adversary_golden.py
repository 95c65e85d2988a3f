"""Golden numbers of rounds after warm-up, with a student that agrees with the teacher on some images and not on others:
in the methods' own golden trajectories it agrees on none, and so their adversarial terms are 0.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from follow import arena
from golden import check_golden, trajectory

from dfkd_fast.methods.cmi.method import Cmi, CmiConfig
from dfkd_fast.methods.cpnet.method import Cpnet, CpnetConfig
from dfkd_fast.methods.fast import Fast, FastConfig
from dfkd_fast.methods.msarc import Msarc, MsarcConfig
from dfkd_fast.methods.nayer import Nayer, NayerConfig
from dfkd_fast.methods.ssdkd import Ssdkd, SsdkdConfig
from dfkd_fast.pool.pool import Pool

SMALL: dict[str, Any] = {"epochs": 6, "warmup_epochs": 1, "synthesis_batch_size": 10}
CASES: dict[str, tuple[Any, Any]] = {
    "nayer": (Nayer, NayerConfig(**SMALL, generator_width=8, synthesis_steps=4, noise_features=12)),
    "fast": (Fast, FastConfig(**SMALL, generator_width=8, synthesis_steps=4, latent_dim=8)),
    "ssdkd": (Ssdkd, SsdkdConfig(**SMALL, generator_width=8, synthesis_steps=4, latent_dim=8, buffer_size=25)),
    "cmi": (Cmi, CmiConfig(**SMALL, generator_width=8, synthesis_steps=4, latent_dim=8, bank_size=20)),
    "msarc": (Msarc, MsarcConfig(**SMALL, generator_width=8, synthesis_steps=4, latent_dim=8)),
    "cpnet": (Cpnet, CpnetConfig(**SMALL, synthesis_steps=4, noise_features=12)),
}
TERMS = {"cmi": ("contrastive",), "cpnet": ("inversion", "align")}


@pytest.mark.parametrize("name", CASES)
def test_rounds_with_an_adversary_that_is_at_work(name: str) -> None:
    """Three rounds of four steps; the term is there in most of the last two and moves the images that are kept."""
    cls, config = CASES[name]
    place = arena()
    method = place.method(cls, config)
    (plan,) = method.pools()
    pool = Pool(plan.capacity, (3, 16, 16), runtime=place.runtime, num_classes=4, policy=plan.policy)
    plan.opened(pool)
    found = trajectory(method, place.runtime, epochs=3, terms=("ce", "bn", "adv", *TERMS.get(name, ())))
    assert int((found["losses"][4:, 2].abs() > 1e-6).sum()) > 4
    assert torch.isfinite(found["images"]).all()
    check_golden(f"{name}-adversary", found)
