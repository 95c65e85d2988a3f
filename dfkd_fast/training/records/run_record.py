"""run.json: what a run was, what it cost and what came out; and on which machine, for those who measure."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dfkd_fast
from dfkd_fast.config.record import config_hash
from dfkd_fast.config.sources import label_text
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.flops import StepFlops
from dfkd_fast.costs.peak import matmul_rate
from dfkd_fast.costs.work import Work
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import crc_of_json
from dfkd_fast.files.write import write_file
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.training.loop import Progress
from dfkd_kernels.backend import OPS, pick

FORMAT = 1  # of run.json
AMD_FAMILIES = {"23": "Zen to Zen 2", "25": "Zen 3 or 4", "26": "Zen 5"}
EXTENSIONS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}
"""flags of a processor that decide how fast it multiplies matrices, the best first"""


def write_run_record(
    path: Path,
    config: TrainConfig,
    runtime: Runtime,
    progress: Progress,
    *,
    teacher_top1: float | None,
    teacher: ModelInfo,
    complete: bool,
    collected: int,
    costs: Mapping[str, float],
) -> dict[str, Any]:
    """Write run.json and return it. Seconds are wall time by phase, `processor_seconds` those that the thread which
    runs the steps computed: far less where the machine had other work, or a device. Not evaluated is null, not 0.
    `teacher`: what it expects, and which published weights it has. `collected`: how many real images took part.
    `costs`: what `run_costs` found.
    """
    seconds, counts, last = progress.seconds, progress.counts, progress.last_evaluation
    record = {
        "format": FORMAT,
        "complete": complete,
        "method": config.method_name,
        "dataset": config.dataset_name,
        "teacher": config.teacher,
        **_of_teacher(teacher),
        "student": config.student,
        "seed": config.seed,
        "text": config.text if label_text(config) is not None else None,
        "label_text": label_text(config),
        "data_free": not collected,
        "collected_images": collected,
        "cache_teacher_logits": config.cache_teacher_logits,
        "top1_last": last.get("top1"),
        "top5_last": last.get("top5"),
        "teacher_top1": teacher_top1,
        "agreement": last.get("agreement"),
        "gpu_hours": _gpu_hours(seconds, runtime),
        **{f"{part}_seconds": seconds[part] for part in ("synthesis", "distillation", "evaluation", "compile")},
        **{f"{part}_processor_seconds": progress.processor_seconds[part] for part in ("synthesis", "distillation")},
        "images_synthesized": counts["images_synthesized"],
        "generator_steps": counts["generator_steps"],
        "student_steps": counts["student_steps"],
        **costs,
        "peak_memory_bytes": runtime.peak_memory_bytes(),
        "device": runtime.describe(),
        "precision": runtime.precision,
        "world_size": runtime.world_size,
        "kernel_backends": active_backends(runtime),
        "versions": versions(),
        "git_sha": git_sha(),
        "config_hash": config_hash(config),
    }
    record = json.loads(json.dumps(record))  # as it will be read
    write_file(path, json.dumps({**record, "crc": crc_of_json(record)}, indent=1) + "\n")
    return record


def _of_teacher(info: ModelInfo) -> dict[str, Any]:
    """Which published weights it has, and what its input, and so the student's, is normalised with."""
    return {"published_weights": info.published or None, "mean": info.mean, "std": info.std}


def _gpu_hours(seconds: Mapping[str, float], runtime: Runtime) -> float:
    """Of the phases that a method's cost is compared by, on all GPUs; 0 on a CPU."""
    gpus = runtime.world_size if runtime.device.type == "cuda" else 0
    return (seconds["synthesis"] + seconds["distillation"]) * gpus / 3600


def read_run_record(path: Path) -> dict[str, Any]:
    """What `write_run_record` returned, checked. Raises UserError for a file that is damaged, or of a newer format, and
    OSError. One of before there were checksums is taken as it is.
    """
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: damaged (it is no table)")
    number, crc = record.get("format", 0), record.pop("crc", None)
    if crc is not None and crc != crc_of_json(record):  # first: what it says of its format may be the damage
        raise UserError(f"{path}: damaged (its checksum does not fit)")
    if isinstance(number, int) and number > FORMAT:
        raise UserError(f"{path}: format {number}, of a newer dfkd-fast; this one reads up to {FORMAT}: use that one")
    if crc is None and "format" in record:
        raise UserError(f"{path}: damaged (its checksum is missing)")
    return record


def active_backends(runtime: Runtime) -> dict[str, str]:
    """Operator -> the backend that runs it on the runtime's device, for float32."""
    return {op: pick(op, runtime.device.type, torch.float32) for op in OPS}


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "dfkd_fast": dfkd_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
    }


def git_sha() -> str | None:
    """Commit of this project's checkout that the package runs from, with "+" where files differ from it, or None.

    Only that checkout is asked, never a repository that the package happens to be installed below, and none of a
    repository's own programs is run: no file-system monitor, no hooks.
    """
    root = Path(dfkd_fast.__file__).resolve().parents[1]
    if not ((root / ".git").exists() and (root / "pyproject.toml").is_file() and (root / "dfkd_fast").is_dir()):
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_OPTIONAL_LOCKS": "0"}
    quiet = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
    command = ["git", *quiet, "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def machine_record(runtime: Runtime) -> dict[str, Any]:
    """Device, processor, threads, precision, versions, commit and date, as JSON."""
    info = Path("/proc/cpuinfo")
    return {
        "device": runtime.describe(),
        "processor": processor(info.read_text()) if info.exists() else None,
        "threads": torch.get_num_threads(),
        "precision": runtime.precision,
        "channels_last": runtime.channels_last,
        "versions": versions(),
        "git_sha": git_sha(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor(cpuinfo: str) -> str | None:
    """The first processor of a /proc/cpuinfo, with its family and its best extension, as far as they are known: "AMD
    EPYC (Zen 5, AVX512-BF16)". A model's name alone may not say which of three generations it is.
    """
    found = dict(re.findall(r"^([\w ]+?)\s*:\s*(.+)$", cpuinfo.split("\n\n")[0], re.MULTILINE))
    if "model name" not in found:
        return None
    flags = found.get("flags", "").split()
    family = AMD_FAMILIES.get(found.get("cpu family", "")) if found.get("vendor_id") == "AuthenticAMD" else None
    extension = next((name for flag, name in EXTENSIONS.items() if flag in flags), None)
    about = ", ".join(part for part in (family, extension) if part)
    return f"{found['model name']} ({about})" if about else found["model name"]


def run_costs(
    work: Work, flops: StepFlops, progress: Progress, runtime: Runtime, *, patience: int = 0
) -> dict[str, float]:
    """FLOPs of both phases in their plain formulation, of all ranks together, and the share of the device's rate of
    matrix products that they (MFU), and those that were computed in fact (HFU), make up of the seconds spent.

    `work` and `flops` are a rank's. With `patience` the recipe is an upper bound: its synthesis counts in proportion to
    the steps that were taken, as if rounds of all kinds had ended alike. Takes a fraction of a second, which does not
    count as the run's.
    """
    rate, seconds = matmul_rate(runtime), progress.seconds
    planned, taken = work.synthesis_steps.total(), progress.counts["generator_steps"]
    share = taken / planned if patience and planned else 1.0
    assert flops.done is not None, "counted"
    found, done = (
        {"synthesis": share * each.of_synthesis(work), "distillation": each.of_distillation(work)}
        for each in (flops, flops.done)
    )
    return {
        **{f"{phase}_flops": count * runtime.world_size for phase, count in found.items()},
        **{f"{phase}_mfu": count / (seconds[phase] * rate) for phase, count in found.items() if seconds[phase]},
        **{f"{phase}_hfu": count / (seconds[phase] * rate) for phase, count in done.items() if seconds[phase]},
        "matmul_flops_per_second": rate,
    }
