"""One command for a machine with an NVIDIA GPU and no network: build, test on the card, capture, measure.

    OUT_DIR=folder python bench/gpu_check.py        (or: make gpu-check OUT_DIR=folder)

Needs what such a machine has: torch with CUDA, torchvision, triton, nvcc, timm, pytest, pytest-benchmark. What else the
tests need is taken along: `make gpu-packages`, where there is a network, puts it into build/gpu-packages for the other
machine's Python (3.12 if not said otherwise), and the folder is used if it is there. Nothing is installed, and the
packages themselves are imported from this checkout.

OUT_DIR (default build/gpu-check) receives steps.jsonl, kernels-<device>.jsonl and each step's log; a short table comes
last. Every step has a time limit, all together nine minutes, and a failing step does not stop the next; a benchmark's
rows are written one by one, so a step that runs out of time loses none. Exit status 1 if any step failed.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEADLINE = 540.0  # seconds, all steps together
PACKAGES = ROOT / "build" / "gpu-packages"
NETWORKS = "bench/kernels/bench_networks.py"


@dataclass(frozen=True)
class Step:
    """A command and the seconds that it may take."""

    name: str
    command: list[str]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a step did; `last` is its last line of output."""

    step: str
    status: str
    seconds: float
    last: str


def main() -> int:
    """Run all steps, write the records and print the table."""
    out = Path(os.environ.get("OUT_DIR") or ROOT / "build" / "gpu-check").resolve()
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    outcomes = []
    for step in steps(out):
        left = DEADLINE - (time.monotonic() - start)
        outcomes.append(run(step, out, min(step.seconds, left)))
        with (out / "steps.jsonl").open("a") as file:
            file.write(json.dumps(asdict(outcomes[-1])) + "\n")
    print_table(out, outcomes)
    return int(any(outcome.status != "passed" for outcome in outcomes))


def steps(out: Path) -> list[Step]:
    """Machine, build, capture of every operator and of whole steps, the other kernel tests, benchmarks."""
    python = sys.executable
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if has("xdist") else []
    lenient = [] if has("pytest_timeout") else ["-o", "addopts=-q"]  # pyproject.toml's is strict about its settings
    pytest = [python, "-m", "pytest", *workers, *lenient]
    tests = [*pytest, "tests/kernels"]
    replays = ["tests/methods/test_replay.py", "tests/test_optim.py"]
    describe = (
        "import hypothesis, timm, torch, torchvision, triton; p = torch.cuda.get_device_properties(0); "
        "print(p.name, f'sm_{p.major}{p.minor}', f'{p.total_memory >> 30} GiB', torch.__version__, triton.__version__)"
    )
    bench = [python, "-m", "pytest", "-c", "bench/kernels/pytest.ini", "--seconds", "2", "--results", str(out)]
    return [
        Step("machine", [python, "-c", describe], 60),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 150),
        Step("capture", [*tests, "-m", "gpu"], 120),
        Step("replay", [*pytest, *replays, "-m", "gpu"], 120),
        Step("tests", [*tests, "-m", "not gpu and not slow"], 150),
        Step("networks", [*bench, NETWORKS], 240),
        Step("bench", [*bench, "bench/kernels", f"--ignore={NETWORKS}"], 240),
    ]


def has(package: str) -> bool:
    """Whether a step can import it."""
    return importlib.machinery.PathFinder.find_spec(package, [str(PACKAGES), *sys.path]) is not None


def run(step: Step, out: Path, seconds: float) -> Outcome:
    """Run a step under its limit, its output in <step>.log."""
    log = out / f"{step.name}.log"
    environment = {
        **os.environ,
        "DFKD_BUILD_EXT": "1",
        "DFKD_BUILD_CUDA": "1",
        "MAX_JOBS": str(os.cpu_count() or 1),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", PACKAGES, os.environ.get("PYTHONPATH", "")))),
        "PYTHONUNBUFFERED": "1",
    }
    start = time.monotonic()
    status = "not run: no time left"
    if seconds > 0:
        with log.open("w") as file:
            try:
                result = subprocess.run(
                    step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
                )
                status = "passed" if result.returncode == 0 else f"failed: exit status {result.returncode}"
            except subprocess.TimeoutExpired:
                status = f"failed: over {seconds:.0f} s"
    return Outcome(step.name, status, round(time.monotonic() - start, 1), (lines_of(log) or [""])[-1])


def lines_of(log: Path) -> list[str]:
    """The lines of a log that are not empty; none if it was not written."""
    return [line for line in log.read_text().splitlines() if line.strip()] if log.exists() else []


def print_table(out: Path, outcomes: list[Outcome]) -> None:
    """Failures of the tests, the rows that were measured, then one line per step."""
    for name in ("capture", "replay", "tests"):
        for line in [line for line in lines_of(out / f"{name}.log") if line.startswith(("FAILED", "ERROR"))]:
            print(line[:160])
    for records in sorted(out.glob("kernels-*.jsonl")):
        for row in map(json.loads, lines_of(records)):
            figures = {name: ratio["value"] for name, ratio in row["ratios"].items()} | row["numbers"]
            shape = "x".join(map(str, row["shape"]))
            print(f"{row['row']} {shape} {row['dtype']}: {', '.join(f'{n} {v:.3g}' for n, v in figures.items())}"[:200])
    for outcome in outcomes:
        print(f"{outcome.step:<8} {outcome.seconds:6.1f} s  {outcome.status:<28} {outcome.last[:100]}")
    print(f"records and logs: {out}")


if __name__ == "__main__":
    sys.exit(main())
