"""Builds the optional extension dfkd_kernels._C: C++ and CUDA on torch's stable ABI, one abi3 binary.

DFKD_BUILD_EXT    unset: build it where torch and a compiler are found, else warn and install the pure-Python package;
                  0: never; 1: a build that cannot be made is an error.
DFKD_BUILD_CUDA   unset: the .cu sources too where torch is a CUDA build and nvcc is found; 0: never; 1: always (beside
                  a CPU-only torch the binary loads and its CUDA operators raise).
TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS: as for any torch extension; the default architectures are 8.0 and 9.0+PTX.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup

TORCH_TARGET = "0x020b000000000000ULL"  # the stable ABI of torch 2.11: one binary for 2.11 and later
CPYTHON_TAG = "cp311"
SOURCES = Path("csrc")


def main() -> None:
    extension, commands = (None, {}) if os.environ.get("DFKD_BUILD_EXT") == "0" else native_extension()
    setup(
        ext_modules=[extension] if extension else [],
        cmdclass=commands,
        options={"bdist_wheel": {"py_limited_api": CPYTHON_TAG}} if extension else {},
    )


def give_up(reason: str) -> None:
    """An extension that was asked for and cannot be built is an error; one that nobody asked for is a warning."""
    if os.environ.get("DFKD_BUILD_EXT") == "1" or os.environ.get("DFKD_BUILD_CUDA") == "1":
        raise SystemExit(f"dfkd_kernels._C cannot be built: {reason}")
    line = "*" * 100
    consequence = "The package works without it (Triton and reference kernels); `dfkd-fast ls kernels` says what runs."
    print(f"{line}\ndfkd_kernels._C is not built: {reason}\n{consequence}\n{line}", file=sys.stderr)


def native_extension() -> tuple[Extension | None, dict[str, type]]:
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        give_up("torch is not importable during the build (use: pip install --no-build-isolation .)")
        return None, {}
    cuda_home = find_cuda_home()
    wanted = os.environ.get("DFKD_BUILD_CUDA")
    if wanted == "1" and cuda_home is None:
        give_up("DFKD_BUILD_CUDA=1, but no CUDA toolkit is found (set CUDA_HOME)")
    with_cuda = cuda_home is not None and (wanted == "1" or (wanted != "0" and torch.version.cuda is not None))
    flags = ["-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *(["-DDFKD_CUDA"] if with_cuda else [])]
    options: dict[str, Any] = {
        "name": "dfkd_kernels._C",
        "sources": [str(path) for path in sources(with_cuda)],
        "depends": [str(path) for path in sorted(SOURCES.rglob("*.h"))],
        "py_limited_api": True,
        "extra_compile_args": {"cxx": [*flags, *cpu_flags()], "nvcc": [*flags, "-DUSE_CUDA", "-lineinfo"]},
    }
    make = cpp_extension.CppExtension
    if with_cuda and cuda_home is not None:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        cpp_extension.CUDA_HOME = str(cuda_home)  # unset beside a CPU torch, wrong where nvcc is a wrapper script
        if torch.version.cuda is None:
            link_without_cuda_torch(options, cuda_home, cpp_extension)
        else:
            make = cpp_extension.CUDAExtension
    return make(**options), {"build_ext": optional_build(cpp_extension.BuildExtension)}


def sources(with_cuda: bool) -> list[Path]:
    found = [SOURCES / "module.c", SOURCES / "library.cpp", *sorted(SOURCES.glob("cpu/*.cpp"))]
    return [*found, *sorted(SOURCES.glob("cuda/*.cu"))] if with_cuda else found


def cpu_flags() -> list[str]:
    """No -march: csrc/cpu/each_isa.h compiles each kernel per instruction set. No -ffast-math: NaN must pass."""
    return [
        "-g0",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",
    ]


def link_without_cuda_torch(options: dict[str, Any], cuda_home: Path, cpp_extension: Any) -> None:
    """Compile and link the .cu sources beside a CPU-only torch: the binary loads, which proves that they build."""
    cpp_extension._check_cuda_version = lambda *_: None  # compares nvcc with the CUDA that torch was built with: none
    options["extra_compile_args"]["nvcc"].append("-DDFKD_CPU_ONLY_TORCH")
    options["include_dirs"] = [str(cuda_home / "include")]
    options["library_dirs"] = [str(cuda_home / name) for name in ("lib64", "lib")]
    options["libraries"] = ["cudart_static", "dl", "rt", "pthread"]


def optional_build(base: Any) -> type:
    class OptionalBuild(base):
        """torch's BuildExtension, except that a failing compiler leaves a pure-Python package and says so."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # torch raises RuntimeError, setuptools errors of its own
                give_up(f"{type(error).__name__}: {error}")
                self.extensions: list[Extension] = []

    return OptionalBuild


def find_cuda_home() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, else what nvcc itself says (it may be a wrapper script), else the usual folder."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if shutil.which("nvcc"):
        command = ["nvcc", "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
        dry_run = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        candidates += re.findall(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE)
    for candidate in [*candidates, "/usr/local/cuda"]:
        if candidate and (home := Path(candidate.strip()).resolve()).joinpath("include", "cuda_runtime.h").exists():
            return home
    return None


main()
