"""Compile every Triton kernel of dfkd_kernels for GPUs that need not be there, and say what each takes of them.

    python bench/kernels/triton_resources.py [--arch 80 90] [--out bench/results/triton-resources.jsonl]

One JSON line per kernel, specialisation and architecture: registers a thread, spilled bytes, shared memory. Exit
status 1 if a kernel spills or does not fit. The kernels say themselves which specialisations matter (`aot_cases`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing; it is chosen when a kernel is loaded

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

import dfkd_kernels
from dfkd_kernels.registration import AotCase

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""bytes that one program may have, by architecture; the compiler does not check"""

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


class Target(DriverBase):
    """Stands in for a GPU's driver: `warmup` asks it for nothing but the target."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("there is no GPU to time on")

    def get_empty_cache_for_benchmark(self) -> Any:
        raise NotImplementedError("there is no GPU to time on")

    def clear_cache(self, cache: Any) -> None:
        raise NotImplementedError("there is no GPU to time on")


def find_cases() -> Iterator[AotCase]:
    """All cases of all modules of the package that launch Triton kernels."""
    for module in pkgutil.walk_packages(dfkd_kernels.__path__, "dfkd_kernels."):
        if module.name.rpartition(".")[2] in ("triton", "launch"):
            yield from getattr(importlib.import_module(module.name), "aot_cases", list)()


def measure(case: AotCase, arch: int) -> dict[str, Any]:
    """Compile one case as a launch would, without launching, and let ptxas count."""
    driver.set_active(Target(arch))
    case.kernel.device_caches.clear()  # its key holds the device, not the target
    compiled = case.kernel.warmup(*case.args, grid=(1,), **case.options)
    registers, spilled = count_registers(compiled.asm["ptx"], arch)
    return {
        "kernel": case.name,
        "arch": f"sm_{arch}",
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def count_registers(ptx: str, arch: int) -> tuple[int, int]:
    """Registers a thread, and bytes stored or loaded because they did not suffice."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        target = re.search(r"\.target (sm_\w+)", ptx)
        assert target is not None
        command = [str(PTXAS), "-v", f"--gpu-name={target.group(1)}", source.name, "-o", os.devnull]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", text)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", text)
    assert registers is not None
    return int(registers.group(1)), sum(map(int, spills))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(SHARED_MEMORY), default=sorted(SHARED_MEMORY))
    parser.add_argument("--out", type=Path, help="write the lines there instead of printing them")
    options = parser.parse_args()
    lines, bad = [], 0
    for case in find_cases():
        for arch in options.arch:
            row = measure(case, arch)
            lines.append(json.dumps(row))
            if row["spilled_bytes"] or row["shared_bytes"] > SHARED_MEMORY[arch]:
                bad += 1
                print(f"does not fit: {lines[-1]}", file=sys.stderr)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    else:
        print("\n".join(lines))
    print(f"{len(lines)} compiled, {bad} that spill or do not fit", file=sys.stderr)
    return 1 if bad or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
