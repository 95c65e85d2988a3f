"""Foundations of the other tests: unwritten memory is seen, only eager calls skip the dispatcher."""

import pytest
import torch
from operator_contract import BACKENDS, DEVICE, running_on
from torch._subclasses import FakeTensorMode

from dfkd_kernels import kd_kl
from dfkd_kernels.backend import NAMESPACE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_unwritten_memory_is_seen(dtype):
    assert torch.empty(5, dtype=dtype, device=DEVICE).isnan().all()
    assert torch.empty(2, 3, 4, 5, dtype=dtype, device=DEVICE, memory_format=torch.channels_last).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_eager_calls_skip_the_dispatcher(backend):
    """The profiler lists what is dispatched: not our operator in eager mode, but under fake tensors."""
    logits = torch.zeros(2, 3, device=DEVICE)
    with running_on(backend, "kd_kl"):
        kd_kl(logits, logits)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as eager:
            kd_kl(logits, logits)
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as faked,
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            kd_kl(logits, logits)
    called = [{event.key for event in profile.key_averages()} for profile in (eager, faked)]
    assert called[0]
    assert f"{NAMESPACE}::kd_kl_forward" not in called[0]
    assert f"{NAMESPACE}::kd_kl_forward" in called[1]
