"""A card that is not there: inside `fake_card` torch says it has one GPU, and its tensors have no values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from watch import Watch

from dfkd_fast.costs.without_values import apply_in_place, deepcopy_of

GB = 10**9


@contextlib.contextmanager
def fake_card(watch: Watch) -> Iterator[None]:
    """FakeTensorMode with all that it lacks for a run beside a CPU-only torch; `watch` sees every operator."""
    properties = SimpleNamespace(name="fake card", major=9, minor=0, total_memory=80 * GB, multi_processor_count=132)
    driver: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda device=None: (70 * GB, 80 * GB),
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "synchronize": lambda device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: None,
        "set_rng_state": lambda state, device=None: None,
        "is_current_stream_capturing": lambda: watch.capturing,
        "current_stream": lambda device=None: FakeStream(device),
        "stream": lambda stream: contextlib.nullcontext(),
        "Stream": FakeStream,
        "Event": FakeEvent,
        "graph_pool_handle": lambda: (0, 0),
        "CUDAGraph": FakeGraph,
        "graph": lambda *_, **__: watch.capture(),
    }
    accelerator = {
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "is_available": lambda: True,
        "current_device_index": lambda: 0,
    }
    with contextlib.ExitStack() as stack:
        # before torch says it has a GPU: the mode would initialise it
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        for name, answer in driver.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        for name, answer in accelerator.items():
            stack.enter_context(patch.object(torch.accelerator, name, answer))
        stack.enter_context(patch.object(torch._C, "_get_accelerator", lambda *_: torch.device("cuda")))
        stack.enter_context(patch.object(torch, "Generator", FakeGenerator))
        stack.enter_context(patch.object(nn.Module, "_apply", apply_in_place))
        stack.enter_context(patch.object(Tensor, "__deepcopy__", deepcopy_of))
        if hasattr(fake_tensor, "init_gpu_context"):
            stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda *_, **__: None))
        stack.enter_context(watch)
        yield


class FakeEvent:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: FakeEvent) -> float:
        return 1.0


class FakeStream:
    """A stream on which nothing waits."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...


class FakeGraph:
    """A graph whose replay does nothing."""

    def replay(self) -> None: ...


class FakeGenerator(torch.Generator):
    """Says the device that it was asked for and draws on the host: what is drawn has no values anyway."""

    says: torch.device

    def __new__(cls, device: Any = "cpu") -> FakeGenerator:
        made = super().__new__(cls, "cpu")
        asked = torch.device(device)
        made.says = torch.device("cuda", asked.index or 0) if asked.type == "cuda" else asked
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.says
