"""The machine and what is installed; a row that fails names what the other steps need and would not find."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from step_report import StepReport, open_report

IMPORTED = (
    *("torch", "torchvision", "triton", "numpy", "PIL", "safetensors", "sklearn", "timm", "rich", "setuptools"),
    *("tomli_w", "tyro", "docstring_parser", "typeguard", "typing_extensions"),
    *("pytest", "pytest_benchmark", "hypothesis", "sortedcontainers"),
)
SETUPTOOLS = 77
"""the first that reads pyproject.toml's licence"""


def main() -> int:
    """A row for the packages, one for what builds, one for the versions and one for the card."""
    report = open_report("machine", __doc__)
    missing = [name for name in IMPORTED if importlib.util.find_spec(name) is None]
    if "setuptools" not in missing:
        found = importlib.metadata.version("setuptools")
        missing += [f"setuptools>={SETUPTOOLS} (it is {found})"] if int(found.split(".")[0]) < SETUPTOOLS else []
    report.row("packages", ok=not missing, missing=", ".join(missing) or "none")
    if report.rehearse:
        report.not_run("tools", "a rehearsal builds nothing")
    else:
        lacking = [name for name, path in tools().items() if path is None]
        report.row("tools", ok=not lacking, missing=", ".join(lacking) or "none")
    if not {"torch", "triton"} & {*missing}:
        card(report)
    return report.status()


def tools() -> dict[str, str | None]:
    """Where what the extension is built with lies; nvcc also where setup.py looks beside PATH."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    beside = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    nvcc = next(filter(None, map(shutil.which, ("nvcc", *beside))), None)
    return {"nvcc": nvcc, "c++": shutil.which(os.environ.get("CXX", "c++")), "ninja": shutil.which("ninja")}


def card(report: StepReport) -> None:
    """The rows that torch is asked for."""
    import torch
    import triton

    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "triton": triton.__version__}
    cuda, nvcc = torch.version.cuda, release(tools()["nvcc"])
    fits = report.rehearse or (cuda is not None and nvcc.split(".")[0] == cuda.split(".")[0])  # torch refuses others
    report.row("versions", ok=fits, **versions, cuda=cuda, nvcc=nvcc, cores=os.cpu_count() or 1)
    if report.rehearse:
        report.not_run("card", "rehearsed on the CPU")
    elif torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        memory, count = found.total_memory >> 30, torch.cuda.device_count()
        report.row("card", name=found.name, arch=f"sm_{found.major}{found.minor}", gib=memory, cards=count)
    else:
        report.row("card", ok=False, reason="torch finds none")


def release(nvcc: str | None) -> str:
    """The compiler's CUDA version, such as 13.0."""
    if nvcc is None:
        return "none"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    return text.partition("release ")[2].partition(",")[0] or "?"


if __name__ == "__main__":
    sys.exit(main())
