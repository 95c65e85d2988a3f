"""Compile every Triton kernel of dfkd_kernels for GPUs that need not be there, and say what each takes of them.

    python bench/kernels/triton_resources.py [--arch 80 90 100] [--out FILE | --check FILE] [--corners] [--every N]

One JSON line per kernel, specialisation and architecture: registers a thread, spilled bytes, shared memory; with --out
a table beside what else FILE holds. Exit status 1 if a kernel does not compile, spills, does not fit, or takes more
than --check FILE says (the committed table is bench/results/launches.json; with another Triton than that of its rows
nothing is compared, which is said).
Which specialisations matter is said in tests/kernels/aot_cases: `cases`, and with --corners `corners`, which are not
measured. --every N takes one case in N of each kernel, at least one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing; it is chosen when a kernel is loaded

import launch_table
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/kernels"))
import aot_cases
from aot_cases import AotCase

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""bytes that one program may have, by architecture; the compiler does not check"""

AMOUNTS = ("registers", "spilled_bytes", "shared_bytes")
"""what of a row may not grow"""


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


def sample(cases: Iterable[AotCase], every: int) -> list[AotCase]:
    """One case in `every` of each kernel, beginning with its last."""
    by_kernel: dict[int, list[AotCase]] = {}
    for case in cases:
        by_kernel.setdefault(id(case.kernel), []).append(case)
    return [case for group in by_kernel.values() for case in group[::-1][::every][::-1]]


def compile_case(case: AotCase, arch: int) -> Any:
    """Compile one case as a launch would, without launching."""
    driver.set_active(Target(arch))
    case.kernel.device_caches.clear()  # its key holds the device, not the target
    return case.kernel.warmup(*case.args, grid=(1,), **case.options)


def measure(case: AotCase, arch: int) -> dict[str, Any]:
    """Compile one case and let ptxas count."""
    compiled = compile_case(case, arch)
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
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target.group(1)}", source.name, "-o", os.devnull]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", text)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", text)
    assert registers is not None
    return int(registers.group(1)), sum(map(int, spills))


def complaints(row: dict[str, Any], table: dict[tuple[str, str], dict[str, Any]] | None) -> Iterator[str]:
    """What is wrong with a row by itself, and beside the table, if there is one to compare with."""
    if row["spilled_bytes"] or row["shared_bytes"] > SHARED_MEMORY[int(row["arch"][3:])]:
        yield f"does not fit: {json.dumps(row)}"
    if table is None:
        return
    known = table.get((row["kernel"], row["arch"]))
    if known is None:
        yield f"not in the table: {row['kernel']} {row['arch']}"
        return
    for amount in AMOUNTS:
        if row[amount] > known[amount]:
            yield f"grew: {row['kernel']} {row['arch']}: {amount} {row[amount]}, the table has {known[amount]}"


def read_table(file: Path) -> dict[tuple[str, str], dict[str, Any]] | None:
    """The committed rows by kernel and architecture; None, which is said, if another Triton made them."""
    rows = launch_table.kernel_rows(file)
    made_by = {row["triton"] for row in rows}
    if made_by != {triton.__version__}:
        print(f"{file.name} is of Triton {', '.join(made_by)}, not {triton.__version__}: not compared", file=sys.stderr)
        return None
    return {(row["kernel"], row["arch"]): row for row in rows}


def main() -> int:
    """Compile what the command line asks for; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(SHARED_MEMORY), default=sorted(SHARED_MEMORY))
    parser.add_argument("--out", type=Path, help="write them into that table instead of printing them")
    parser.add_argument("--check", type=Path, help="a table that no line may exceed")
    parser.add_argument("--corners", action="store_true", help="the corner cases: compiled, not measured")
    parser.add_argument("--every", type=int, default=1, help="of each kernel one case in so many")
    options = parser.parse_args()
    table = read_table(options.check) if options.check else None
    cases = sample(aot_cases.find("corners" if options.corners else "cases"), options.every)
    rows, bad, compiled = [], 0, 0
    for case in cases:
        for arch in options.arch:
            try:
                row = None if options.corners else measure(case, arch)
                if row is None:
                    compile_case(case, arch)
            except Exception as error:  # whatever a compiler says: the others are still worth knowing
                words = next(reversed(str(error).strip().splitlines()), "")
                found = [f"does not compile: {case.name} sm_{arch}: {type(error).__name__}: {words[:200]}"]
            else:
                compiled += 1
                found = list(complaints(row, table)) if row else []
                rows += [row] if row else []
            bad += bool(found)
            for complaint in found:
                print(complaint, file=sys.stderr)
    if options.out and rows:
        launch_table.write_kernel_rows(options.out, rows)
    else:
        print("".join(json.dumps(row) + "\n" for row in rows), end="")
    print(f"triton {triton.__version__}: {compiled} compiled, {bad} bad", file=sys.stderr)
    return 1 if bad or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
