"""A teacher that answers with folded BatchNorms: the same answers up to rounding, the rest as before; or a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dfkd_fast.config.record import config_hash
from dfkd_fast.config.sources import default_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.frozen_forms import check_foldable
from dfkd_fast.models.teacher import FrozenNet
from dfkd_kernels.freeze.fold import FoldedConv2d

SHAPE = {"num_classes": 10, "image_size": 32, "mean": (0.3, 0.3, 0.3), "std": (0.4, 0.4, 0.4)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answers_are_folded_and_nothing_else(precision: str) -> None:
    torch.manual_seed(0)
    model, info = load_model("wrn16_1", **SHAPE)
    runtime = make_runtime(device="cpu", precision=precision)
    plain, folded = FrozenNet(model, info, runtime), FrozenNet(model, info, runtime, folded=True)
    view = torch.randn(8, 3, 32, 32).to(runtime.compute_dtype)
    names = folded.stage_maps(2)
    assert names == plain.stage_maps(2)
    ours, theirs = folded.answer(view, maps=names), plain.answer(view, maps=names)
    close = {"rtol": 1e-4, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 0.05}
    for mine, other in ((ours.logits, theirs.logits), *((ours.maps[name], theirs.maps[name]) for name in names)):
        torch.testing.assert_close(mine, other, **close)
    assert not torch.equal(ours.logits, theirs.logits)
    assert torch.equal(folded.logits(view), ours.logits)
    # synthesis, and answers with gradients
    assert torch.equal(folded(view).logits, plain(view).logits)
    assert len(folded(view).moments) == len(folded.targets) == len(plain.targets) > 0
    assert torch.equal(folded.answer(view, gradients=True).logits, plain.answer(view, gradients=True).logits)
    assert not any(isinstance(module, FoldedConv2d) for module in folded.net.modules())


def test_where_it_cannot_be_had() -> None:
    runtime = make_runtime(device="cpu", precision="fp32")
    with pytest.raises(UserError, match="--fold-teacher: vit has no BatchNorm that could be folded"):
        check_foldable("vit", runtime, has_norms=False)
    with pytest.raises(UserError, match="--fold-teacher: the run is on cuda, and it gains on a CPU only"):
        check_foldable("cnn", replace(runtime, device=torch.device("cuda", 0)), has_norms=True)


def test_it_is_part_of_what_a_run_computes() -> None:
    config = default_config("nayer")
    assert config_hash(config) != config_hash(replace(config, fold_teacher=True))
