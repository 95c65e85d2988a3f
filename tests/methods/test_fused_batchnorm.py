"""`--bn.fused`: the same steps up to rounding, what is refused, and what auto takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_compiled import losses
from test_contract import Assembled, teacher_file, tiny  # noqa: F401 - a fixture

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.fused_batchnorm import takes_fused_batchnorm
from dfkd_fast.parallel.global_batch import GlobalBatch
from dfkd_kernels import BatchNormAct2d, use
from dfkd_kernels.backend import native_ops

pytestmark = pytest.mark.skipif(native_ops() is None, reason="the C++ extension is not built")


@pytest.mark.parametrize("name", ["nayer", "spaceshipnet"])
def test_steps_are_the_same(name: str, teacher_file: Path, tmp_path: Path) -> None:  # noqa: F811
    """A generator of nn.Sequentials; SpaceshipNet runs slices of one, and taps the student's maps."""
    config = tiny(name, teacher_file, tmp_path / "run")
    expected = losses(Assembled(config, tmp_path / "plain"))
    run = Assembled(replace(config, bn=replace(config.bn, fused="on")), tmp_path / "fused")
    for module in (run.student, run.method):
        assert any(isinstance(layer, BatchNormAct2d) for layer in module.modules())
    torch.testing.assert_close(torch.stack(losses(run)), torch.stack(expected), rtol=1e-3, atol=1e-4)


def test_auto_takes_it_where_it_is_known_to_be_faster() -> None:
    runtime = make_runtime(device="cpu", precision="fp32")
    assert takes_fused_batchnorm("auto", runtime)
    assert not takes_fused_batchnorm("off", runtime)
    assert not takes_fused_batchnorm("auto", replace(runtime, channels_last=True))
    assert takes_fused_batchnorm("auto", replace(runtime, channels_last=True, precision="bf16"))
    assert not takes_fused_batchnorm("auto", replace(runtime, compilation="default"))
    assert not takes_fused_batchnorm("auto", replace(runtime, global_batch=GlobalBatch(0, 2)))
    use("reference", op="bn_act_train")
    try:
        assert not takes_fused_batchnorm("auto", runtime)
        with pytest.raises(UserError, match=r"^--bn\.fused on: the reference is chosen; choose off or auto$"):
            takes_fused_batchnorm("on", runtime)
    finally:
        use("auto", op="bn_act_train")


def test_it_is_refused_with_the_global_batch() -> None:
    runtime = replace(make_runtime(device="cpu", precision="fp32"), global_batch=GlobalBatch(0, 2))
    with pytest.raises(UserError, match=r"^--bn\.fused on: does not go with --bn\.scope global; choose"):
        takes_fused_batchnorm("on", runtime)
