"""The runtime: what was asked for, or one line that says why not."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from dfkd_fast.device.runtime import Runtime, has_fast_bf16, make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.parallel import group as process_group

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


def test_auto_is_what_the_machine_has() -> None:
    runtime = make_runtime(precision="auto")
    assert runtime.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.precision == ("bf16" if has_fast_bf16(runtime.device) else "fp32")


@pytest.mark.parametrize(
    ("precision", "compute", "master"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.float32),
        ("fp16", torch.float16, torch.float32),
        ("fp64", torch.float64, torch.float64),
    ],
)
def test_dtypes(precision: str, compute: torch.dtype, master: torch.dtype) -> None:
    runtime = make_runtime(device="cpu", precision=precision)
    assert (runtime.compute_dtype, runtime.master_dtype) == (compute, master)
    layer = runtime.place(nn.Linear(2, 2))
    assert isinstance(layer, nn.Linear)
    assert layer.weight.dtype == master
    with runtime.autocast():
        assert layer(torch.ones(1, 2, dtype=master)).dtype == compute


def test_channels_last() -> None:
    conv = make_runtime(device="cpu", channels_last=True).place(nn.Conv2d(3, 4, 3))
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, r"--precision fp8: .*choose auto, fp32, bf16, fp16 or tf32"),
        ({"device": "gpu"}, r"--device gpu: choose auto, cpu, cuda or cuda:N"),
        ({"device": "meta"}, r"--device meta: choose auto, cpu, cuda or cuda:N"),
        ({"threads": 0}, r"--threads 0: choose 1 or more"),
    ],
)
def test_mistakes_name_the_flag(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_runtime(**arguments)  # type: ignore[arg-type]


@NO_GPU
@pytest.mark.parametrize(("flag", "value"), [("device", "cuda"), ("precision", "tf32")])
def test_a_gpu_that_is_not_there(flag: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{flag} {value}: .*CUDA"):
        make_runtime(**{flag: value})


@pytest.mark.parametrize(
    ("asked", "local_rank", "number"),
    [
        ("auto", None, 1),
        ("cuda", None, 1),
        ("cuda:0", None, 0),
        ("cuda:2", None, 2),
        ("auto", "2", 2),
        ("cuda", "0", 0),
    ],
)
def test_a_gpu_has_its_number_and_is_the_current_one(
    asked: str, local_rank: str | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors lie on `cuda:0`, which `cuda` does not equal; events and streams are the current device's."""
    current = [1]
    gpu = {"is_available": lambda: True, "device_count": lambda: 3, "current_device": lambda: current[0]}
    for name, answer in gpu.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.__setitem__(0, device.index))
    monkeypatch.setattr(process_group, "join", lambda device: (0, 1))
    for name in ("benchmark", "allow_tf32"):  # make_runtime sets them
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert make_runtime(device=asked).device == torch.device("cuda", number)
    assert current == [number]


def test_a_gpu_without_a_number_is_no_runtimes() -> None:
    with pytest.raises(AssertionError, match="without its number"):
        Runtime(device=torch.device("cuda"), precision="fp32", channels_last=False)


def test_world_of_one() -> None:
    runtime = make_runtime(device="cpu")
    value = torch.ones(2)
    assert runtime.all_reduce(value) is value
    assert runtime.is_main
    assert runtime.peak_memory_bytes() > 2**20
    assert runtime.describe()


LARGE_TENSOR = """
import torch
from pathlib import Path
from dfkd_fast.device.runtime import make_runtime

make_runtime(device="cpu")
address = torch.empty(100 << 20, dtype=torch.uint8).data_ptr()
heap = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
low, high = (int(bound, 16) for bound in heap.split()[0].split("-"))
print(low <= address < high)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep freed memory")
def test_large_tensors_come_from_memory_that_is_kept() -> None:
    """From the heap, not from a mapping of their own that is returned when they are freed."""
    found = subprocess.run([sys.executable, "-c", LARGE_TENSOR], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "True"
