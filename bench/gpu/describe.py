"""The machine and what is installed; fails if a package that the other steps import is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

from step_report import open_report

IMPORTED = (
    *("torch", "torchvision", "triton", "numpy", "PIL", "safetensors", "sklearn", "timm", "rich", "tomli_w", "tyro"),
    *("pytest", "pytest_benchmark", "hypothesis"),
)


def main() -> int:
    """One row for the machine, one for the packages."""
    report = open_report("machine", __doc__)
    missing = [name for name in IMPORTED if importlib.util.find_spec(name) is None]
    report.row("packages", ok=not missing, missing=", ".join(missing) or "none")
    if missing:
        return report.status()
    import torch
    import triton

    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "triton": triton.__version__}
    report.row("versions", **versions, nvcc=_nvcc(), cores=os.cpu_count() or 1)
    if report.rehearse:
        report.not_run("card", "rehearsed on the CPU")
    elif torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        memory, count = card.total_memory >> 30, torch.cuda.device_count()
        report.row("card", name=card.name, arch=f"sm_{card.major}{card.minor}", gib=memory, cards=count)
    else:
        report.row("card", ok=False, reason="torch finds none")
    return report.status()


def _nvcc() -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "none"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    return text.partition("release ")[2].partition(",")[0] or "?"


if __name__ == "__main__":
    sys.exit(main())
