"""Whole short runs with as many classes as ImageNet-21k: their memory, and the seconds beside their steps."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axes import CLASSES

if TYPE_CHECKING:
    from run import Results

SHORT = (
    "--student",
    "cnn_s",
    "--epochs",
    "3",
    "--warmup-epochs",
    "1",
    "--synthesis-steps",
    "2",
    "--student-steps",
    "4",
)
SHORT += ("--synthesis-batch-size", "64", "--batch-size", "64", "--generator-width", "16", "--precision", "fp32")
RUNS = {
    "ssdkd": ("--buffer-size", "256"),
    "nayer": ("--rounds", "1", "--warmup-rounds", "2", "--text", "{vectors}"),
    "muse-s": ("--full-images", "256", "--data-ratio", "100", "--image-sizes", "32", "--text", "{vectors}"),
}
"""priorities and class statistics; text vectors; text vectors whose distances to each other count"""


def measure(results: Results, where: dict[str, Any], *, again: bool) -> None:
    """Run what is missing, for the most classes."""
    for method in RUNS:
        if again or ("runs", method, CLASSES[-1]) not in results.lines:
            line = {"axis": "runs", "method": method, "value": CLASSES[-1], **run(method, CLASSES[-1]), **where}
            results.add(line)
            memory = line["peak_memory_bytes"] / 2**30
            print(
                f"runs               {CLASSES[-1]:>9,}  {method} {memory:.2f} GiB, {line['seconds']:.1f} s", flush=True
            )


def run(method: str, classes: int) -> dict[str, Any]:
    """Train for three epochs from a teacher of random weights; peak memory, and processor seconds of the process."""
    import torch
    from safetensors.torch import save_file

    from dfkd_fast.benchmark.step_profiler import calibrate_batchnorm
    from dfkd_fast.models.factory import load_model
    from dfkd_fast.training.checkpoints.checkpoint import save_network
    from dfkd_fast.training.records.run_record import read_run_record

    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder:
        teacher, vectors, made = (Path(folder) / name for name in ("teacher.safetensors", "text.safetensors", "run"))
        network, info = load_model("cnn", num_classes=classes, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
        calibrate_batchnorm(network, info)
        save_network(teacher, network, info)
        save_file({"vectors": torch.randn(classes, 512)}, vectors)
        flags = [flag.format(vectors=vectors) for flag in (*SHORT, *RUNS[method])]
        command = [sys.executable, "-m", "dfkd_fast", "train", method, "--teacher", "cnn", *flags]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*command, "--teacher-weights", str(teacher), "--threads", "1", "--run-dir", str(made)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        record = read_run_record(made / "run.json")
    return {
        "peak_memory_bytes": record["peak_memory_bytes"],
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "phase_seconds": record["synthesis_processor_seconds"] + record["distillation_processor_seconds"],
    }
