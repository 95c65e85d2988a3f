"""A teacher in fewer bits than the run: close, differentiable, and refused where it would be none."""

from __future__ import annotations

import pytest
import torch

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.teacher import FrozenNet

SHAPE = {"num_classes": 10, "image_size": 32, "mean": (0.3, 0.3, 0.3), "std": (0.4, 0.4, 0.4)}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_lower_than_the_run(precision: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, info = load_model("cnn", **SHAPE)
    runtime = make_runtime(device="cpu", precision="fp32")
    exact, lower = FrozenNet(model, info, runtime), FrozenNet(model, info, runtime, precision=precision)
    assert {weight.dtype for weight in lower.net.parameters() if weight.dim() > 1} == {dtype}
    view = torch.randn(8, 3, 32, 32, requires_grad=True)
    outputs, wanted = lower(view), exact(view)
    torch.testing.assert_close(outputs.logits.float(), wanted.logits, rtol=0.05, atol=0.05)
    assert not torch.equal(outputs.logits.float(), wanted.logits)
    assert outputs.moments[0].mean().dtype == torch.float32
    (gradient,) = torch.autograd.grad(outputs.logits.float().square().sum(), view)
    (reference,) = torch.autograd.grad(wanted.logits.square().sum(), view)
    assert gradient.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), reference.flatten(), dim=0) > 0.99


def test_not_lower_than_the_run() -> None:
    model, info = load_model("cnn", **SHAPE)
    runtime = make_runtime(device="cpu", precision="bf16")
    with pytest.raises(UserError, match=r"--teacher-precision fp16: the run computes in bf16, .*choose same"):
        FrozenNet(model, info, runtime, precision="fp16")
