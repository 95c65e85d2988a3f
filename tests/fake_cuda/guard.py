"""Build and load the library that lets a torch without CUDA hold fake tensors on a GPU, before torch is imported."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "guard.cpp"


@functools.cache
def load_guard() -> None:
    """Load the guard, once, before torch is imported; it is built in five seconds where this torch has none yet."""
    assert "torch" not in sys.modules, "the guard comes before torch"
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder = Path(spec.origin).parent
    assert not (torch_folder / "lib/libtorch_cuda.so").exists(), "a torch with CUDA has a guard of its own"
    version = (torch_folder / "version.py").read_text()
    digest = hashlib.sha256((version + SOURCE.read_text() + str(torch_folder)).encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"dfkd-fast-fake-cuda-{os.getuid()}-{digest}.so"
    if not library.exists():
        _build(torch_folder, library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _build(torch_folder: Path, library: Path) -> None:
    partial = library.with_suffix(f".{os.getpid()}")  # two processes may build at once: each renames a whole file
    compiler = os.environ.get("CXX", "g++")
    lib = torch_folder / "lib"
    paths = [f"-I{torch_folder / 'include'}", f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"]
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", str(SOURCE), *paths, "-o", str(partial)]
    subprocess.run(command, check=True)
    partial.rename(library)
