"""`Runtime`: device, precision, memory format and rank of a run. One object for one CPU, one GPU and many."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dfkd_fast.device.compilation import Compile, keep_compile_caches
from dfkd_fast.device.switches import set_switches
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.files.limits import available_cores
from dfkd_fast.optim import OptimizerChoice, check_optimizer
from dfkd_fast.parallel import group as process_group
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch

Precision = Literal["auto", "fp32", "bf16", "fp16", "tf32"]

# fp64 is the precision of the reference runs in the tests; the command line does not offer it.
_DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Decided once at start-up; every module that needs to know asks this object, none caches a device of its own."""

    device: torch.device
    precision: str
    channels_last: bool
    compilation: Compile = "off"
    """whether torch.compile makes the steps' forward and backward passes"""
    graphs: bool = False
    """whether whole steps are captured and replayed (CUDA graphs)"""
    optimizer: OptimizerChoice = "auto"
    """whose implementation of Adam and SGD"""
    rank: int = 0
    world_size: int = 1
    global_batch: GlobalBatch = LOCAL_BATCH
    """the ranks' batches as one, where they are"""

    def __post_init__(self) -> None:
        # tensors name the device that they lie on: without its number this one would equal none of theirs
        assert self.device.type != "cuda" or self.device.index is not None, "a CUDA device without its number"

    @property
    def shares(self) -> int:
        """How many parts the recipe is divided into, each with a generator and images of its own."""
        return self.world_size // self.global_batch.size

    @property
    def share(self) -> int:
        """Which of them is this rank's."""
        return self.rank // self.global_batch.size

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and the console."""
        return self.rank == 0

    @property
    def compute_dtype(self) -> torch.dtype:
        """dtype of convolutions and matrix products, and of a frozen teacher's weights."""
        return _DTYPES[self.precision]

    @property
    def master_dtype(self) -> torch.dtype:
        """dtype of trained weights, losses and images."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and convolution weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The mixed-precision context of a forward pass; does nothing in fp32, tf32 and fp64."""
        if self.precision in ("bf16", "fp16"):
            return torch.autocast(self.device.type, dtype=self.compute_dtype)
        return contextlib.nullcontext()

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, dtype and memory format of trained weights."""
        return module.to(device=self.device, dtype=self.master_dtype, memory_format=self.memory_format)  # type: ignore[call-overload]

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over ranks; the value itself at world size 1."""
        if self.world_size > 1:
            process_group.all_reduce(value)
        return value

    def average(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in place and in one message; nothing at world size 1."""
        if self.world_size > 1 and values:
            wide = functools.reduce(torch.promote_types, {value.dtype for value in values})
            flat = self.all_reduce(torch.cat([value.reshape(-1).to(wide) for value in values])) / self.world_size
            sizes = [value.numel() for value in values]
            for value, mean in zip(values, flat.split(sizes), strict=True):
                value.copy_(mean.view(value.shape))

    def average_buffers(self, *modules: nn.Module) -> None:
        """The same for the modules' running statistics: floating point numbers that are saved; others are constants."""
        saved = [module.state_dict(keep_vars=True) for module in modules]
        values = [value for state in saved for value in state.values() if not isinstance(value, nn.Parameter)]
        self.average([value for value in values if isinstance(value, Tensor) and value.is_floating_point()])

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            process_group.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank runs the block before the others do, for hours if need be: it makes what they then find."""
        patient = process_group.patient_group() if self.world_size > 1 else None
        if patient is not None and not self.is_main:
            process_group.barrier(patient)
        yield
        if patient is not None and self.is_main:
            process_group.barrier(patient)

    def synchronize(self) -> None:
        """Wait for the device, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory_bytes(self) -> int:
        """Peak of the device's allocator on a GPU, of the process's resident set on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def describe(self) -> str:
        """Name of the device, for records."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"


def make_runtime(
    *,
    device: str = "auto",
    precision: str = "fp32",
    channels_last: bool = False,
    threads: int | None = None,
    compilation: Compile = "off",
    graphs: bool = False,
    optimizer: OptimizerChoice = "auto",
    bn_scope: Literal["rank", "global"] = "rank",
    deterministic: bool = False,
) -> Runtime:
    """Check what was asked for against this machine and set the process-wide switches.

    `device`: "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:N". `precision`: "auto" is bf16 where the device
    multiplies it in hardware, else fp32. `graphs` means something on a GPU only. A process that torchrun started joins
    the others; `bn_scope` "global" joins their batches into one. `deterministic` allows only operators
    that give the same bits in every run. Raises UserError for what this machine cannot do.
    """
    chosen = _pick_device(device)
    if compilation != "off" or chosen.type == "cuda":  # now: parts of torch that steps import settle on a folder
        keep_compile_caches(compilation)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # what says no device runs on the current one: events, streams, NCCL
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(chosen) else "fp32"
    if precision not in _DTYPES:
        raise unknown("--precision", precision, get_args(Precision))
    _set_threads(threads)
    if precision == "tf32" and chosen.type != "cuda":
        raise UserError(f"--precision tf32: needs a CUDA device, not {chosen}; choose fp32, bf16 or fp16")
    if deterministic and compilation != "off":
        raise UserError(f"--compile {compilation}: its kernels are chosen by timing; --deterministic needs off")
    set_switches(chosen, precision, deterministic=deterministic)
    check_optimizer(optimizer, chosen)
    rank, world_size = process_group.join(chosen)
    whole = bn_scope == "global" and world_size > 1
    if whole and compilation != "off":
        raise UserError(f"--compile {compilation}: does not go with --bn.scope global; choose off")
    return Runtime(
        device=chosen,
        rank=rank,
        world_size=world_size,
        global_batch=GlobalBatch(rank, world_size) if whole else LOCAL_BATCH,
        precision=precision,
        channels_last=channels_last,
        compilation=compilation,
        graphs=graphs and chosen.type == "cuda",
        optimizer=optimizer,
    )


def _set_threads(threads: int | None) -> None:
    """Let torch use so many threads; where nobody says how many, no more than the cores this process may use."""
    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads {threads}: choose 1 or more")
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and available_cores() < torch.get_num_threads():
        torch.set_num_threads(available_cores())  # torch counts the machine's cores, not a container's part of them


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: Ampere or newer, or a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _pick_device(device: str) -> torch.device:
    """The device that `--device` means, a GPU with its number."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device in ("auto", "cuda") and local_rank is not None and torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if int(local_rank) >= gpus:
            raise UserError(f"--device {device}: process {local_rank} of this machine has no GPU; start at most {gpus}")
        return torch.device("cuda", int(local_rank))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device}: choose auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: no CUDA device here; choose auto or cpu")
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if chosen.type == "cuda" and chosen.index >= torch.cuda.device_count():
        raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return chosen
