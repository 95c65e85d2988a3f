"""One command for a machine with an NVIDIA GPU and no network: build, compare with references, replay, train, measure.

    OUT_DIR=folder python bench/gpu_check.py [--only STEP ...] [--resume] [--rehearse]
    OUT_DIR=folder make gpu-check [ARGS="--only STEP ..."]

Needs, of that machine's own Python (3.12; nothing is installed), a C++ compiler and nvcc of torch's CUDA version:

    torch torchvision numpy pillow triton safetensors scikit-learn timm rich pytest pytest-benchmark

What else the steps import is taken along, a few MB: `make gpu-packages`, where there is a network, puts it into
build/gpu-packages, which is used if it is there; this package itself is imported from the checkout:

    setuptools ninja
    tomli_w tyro docstring_parser typeguard typing_extensions
    hypothesis sortedcontainers pytest-timeout pytest-xdist execnet

The steps, in their order; each has a budget, all together nine minutes, and is cut by itself, with what it started:

    machine    the card, versions, and whether all of these packages and tools are there
    build      the C++ and CUDA extension
    kernels    every kernel against its reference, captured and not; none of the tests of the machine that builds
    replay     whole captured steps of every method, bf16, beside the same steps as Python
    train      NAYER on digits end to end, stopped and resumed; then with --deterministic: the same bits
    pool       storages and streams give the same batches, DALI's where it is installed; their share of the bandwidth
    methods    hours, MFU and floor of two presets (`bench/predict.py`)
    rates      what kernels of each kind take: the card's entry in dfkd_fast/costs/cards.toml, which `--on` predicts by
    race       our steps against the released codes' style
    ranks      NCCL, by itself and captured: two ranks on two cards, else a world of one
    bandwidth  the kernels' share of the card's bandwidth (bench/kernels)
    networks   frozen networks with the statistics loss beside hooks and torch.compile

OUT_DIR (default build/gpu-check) receives steps.jsonl, one line a step; rows.jsonl, kernels-<card>.jsonl and
methods-<card>.jsonl, written row by row, so that a step that is cut loses none; cards.toml, the table of rates with the
card's own, which the checkout's is overwritten with; and each step's log. A short table
comes last, with the tests that had failed before their step was cut. --only runs the steps it names; --resume those
that have not passed yet, and of replay, train, bandwidth and networks what has no row yet. --rehearse runs all of it
tiny on a CPU, everything but the card. Exit status 1 if any step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Protocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT / "bench/gpu"))

from kernel_tests import failures, without_host_tests  # noqa: E402
from step_report import append_record, records_of  # noqa: E402

DEADLINE = 540.0  # seconds, all steps together
REHEARSAL = 400.0  # seconds of any step on a CPU, however busy: its speed is not what is rehearsed
PACKAGES = ROOT / "build" / "gpu-packages"
NETWORKS = "bench/kernels/bench_networks.py"
ROWS_SHOWN = 60
PASSED = "passed"


@dataclass(frozen=True)
class Step:
    """A command and the seconds that it may take."""

    name: str
    command: list[str]
    seconds: float


class Process(Protocol):
    """What is asked of a step that runs: subprocess.Popen, or a rehearsal's."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...


@dataclass(frozen=True)
class Outcome:
    """What a step did; `last` is its last line of output, `failures` are the tests that failed, cut or not."""

    step: str
    status: str
    seconds: float
    last: str
    failures: tuple[str, ...] = ()


def main(arguments: list[str] | None = None) -> int:
    """Run the steps that are asked for, write the records and print the table."""
    names = [step.name for step in steps(Path())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--resume", action="store_true", help="leave out what has passed in OUT_DIR")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    options = parser.parse_args(arguments)
    out = Path(os.environ.get("OUT_DIR") or ROOT / "build" / "gpu-check").resolve()
    out.mkdir(parents=True, exist_ok=True)
    done = passed(out) if options.resume else set()
    if options.rehearse:
        from step_copy import preload

        preload(environment(out, rehearse=True), [str(ROOT), str(ROOT / "kernels"), str(PACKAGES)])
    start, outcomes = time.monotonic(), []
    for step in steps(out, rehearse=options.rehearse, resume=options.resume):
        if step.name not in options.only or step.name in done:
            continue
        left = DEADLINE - (time.monotonic() - start)
        seconds = REHEARSAL if options.rehearse else min(step.seconds, left)
        outcomes.append(run(step, out, seconds, rehearse=options.rehearse))
        append_record(out / "steps.jsonl", asdict(outcomes[-1]))
    print_table(out, outcomes, sorted(done))
    return int(any(outcome.status != PASSED for outcome in outcomes))


def steps(out: Path, *, rehearse: bool = False, resume: bool = False) -> list[Step]:
    """All steps; a rehearsal's are the same commands at tiny size, without the card's tests and without compiling."""
    python, flags = sys.executable, [*(["--rehearse"] if rehearse else []), *(["--resume"] if resume else [])]
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if has("xdist") and not rehearse else []
    lenient = [] if has("pytest_timeout") else ["-o", "addopts=-q"]  # pyproject.toml's is strict about its settings
    pytest = [python, "-m", "pytest", "-vv"]  # a line per test as it ends, for what is cut; -q is in the settings
    tests = [*pytest, *workers, *lenient, "tests/kernels", *without_host_tests()]
    bench = [*pytest, "-c", "bench/kernels/pytest.ini", "--seconds", "0.3", "--results", str(out)]
    bench += [*(["--resume"] if resume else []), *(["--collect-only"] if rehearse else [])]
    presets = ["nayer/digits", "fast/digits"] if rehearse else ["nayer/cifar10", "fast/cifar10-fast5"]
    predict = [python, "-m", "dfkd_fast", "bench", "methods"] if rehearse else [python, "bench/predict.py"]
    methods = [*predict, *presets, "--no-plot", "--results", str(out)]
    if rehearse:
        methods += ["--device", "cpu", "--threads", "1", "--batch-share", "0.04", "--samples", "1"]
    else:
        methods += ["--device", "cuda", "--precision", "bf16", "--samples", "3"]

    def script(name: str) -> list[str]:
        return [python, f"bench/gpu/{name}.py", *flags]

    return [
        Step("machine", script("describe"), 25),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 100),
        Step("kernels", [*tests, "-m", "gpu" if rehearse else "not slow and not nightly"], 65),
        Step("replay", script("replay"), 85),
        Step("train", script("run_digits"), 70),
        Step("pool", script("pool_storage"), 30),
        Step("methods", methods, 35),
        Step("rates", script("card_rates"), 20),
        Step("race", script("step_race"), 40),
        Step("ranks", script("ranks"), 25),
        Step("bandwidth", [*bench, "bench/kernels", f"--ignore={NETWORKS}"], 25),
        Step("networks", [*bench, NETWORKS], 20),
    ]


def has(package: str) -> bool:
    """Whether a step can import it."""
    return importlib.machinery.PathFinder.find_spec(package, [str(PACKAGES), *sys.path]) is not None


def passed(out: Path) -> set[str]:
    """Steps whose last record in OUT_DIR says that they passed."""
    last = {record["step"]: record["status"] for record in records_of(out / "steps.jsonl")}
    return {step for step, status in last.items() if status == PASSED}


def run(step: Step, out: Path, seconds: float, *, rehearse: bool = False) -> Outcome:
    """Run a step under its limit, its output in <step>.log."""
    log = out / f"{step.name}.log"
    if seconds <= 0:
        return Outcome(step.name, "not run: no time left", 0.0, "")
    start = time.monotonic()
    with log.open("w") as file:
        process = begin(step, out, file, rehearse=rehearse)
        try:
            code = process.wait(seconds)
            status = PASSED if code == 0 else f"failed: exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"failed: over {seconds:.0f} s"
        finally:
            end(process)
    lines = lines_of(log)
    return Outcome(step.name, status, round(time.monotonic() - start, 1), (lines or [""])[-1], failures(lines))


def begin(step: Step, out: Path, log: IO[str], *, rehearse: bool) -> Process:
    """Start a step's command, with all that it will start in a group of their own."""
    found = environment(out, rehearse=rehearse)
    if rehearse:
        from step_copy import StepCopy

        return StepCopy(step.command, ROOT, found, log)
    return subprocess.Popen(
        step.command, cwd=ROOT, env=found, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def end(process: Process) -> None:
    """Kill what is left of a step: it may have started workers and ranks, which hold the card."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(out: Path, *, rehearse: bool) -> dict[str, str]:
    """What a step finds: this checkout and the packages taken along; a rehearsal builds nothing and sees no card."""
    paths = (ROOT, ROOT / "kernels", PACKAGES, os.environ.get("PYTHONPATH", ""))
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONUNBUFFERED": "1", "OUT_DIR": str(out)}
    found["PATH"] = os.pathsep.join((str(PACKAGES / "bin"), os.environ.get("PATH", os.defpath)))  # ninja is there
    if rehearse:
        return {**found, "DFKD_BUILD_EXT": "0", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**found, "DFKD_BUILD_EXT": "1", "DFKD_BUILD_CUDA": "1", "MAX_JOBS": str(os.cpu_count() or 1)}


def lines_of(log: Path) -> list[str]:
    """The lines of a log that are not empty; none if it was not written."""
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []


def print_table(out: Path, outcomes: list[Outcome], done: list[str]) -> None:
    """Failures of the tests, the rows that were measured, then one line per step."""
    for outcome in outcomes:
        for failure in outcome.failures[:ROWS_SHOWN]:
            print(f"{outcome.step}: FAILED {failure}"[:160])
    shown = [outcome.step for outcome in outcomes]
    rows = [row for row in records_of(out / "rows.jsonl") if row["step"] in shown]
    latest = {(row["step"], row["row"]): row for row in rows}
    for (step, name), row in list(latest.items())[-ROWS_SHOWN:]:
        told = {key: value for key, value in row.items() if key not in ("step", "row", "result", "at_seconds")}
        print(f"{step}: {name}: {row['result']} {' '.join(f'{k}={v}' for k, v in told.items())}"[:160])
    for records in sorted(out.glob("kernels-*.jsonl")) if {"bandwidth", "networks"} & {*shown} else []:
        for row in records_of(records):
            figures = {name: ratio["value"] for name, ratio in row["ratios"].items()} | row["numbers"]
            shape = "x".join(map(str, row["shape"]))
            print(f"{row['row']} {shape} {row['dtype']}: {', '.join(f'{n} {v:.3g}' for n, v in figures.items())}"[:200])
    for line in lines_of(out / "methods.log") if "methods" in shown else []:
        print(line[:160])
    for outcome in outcomes:
        print(f"{outcome.step:<9} {outcome.seconds:6.1f} s  {outcome.status:<28} {outcome.last[:100]}")
    if done:
        print(f"passed before: {', '.join(done)}")
    print(f"records and logs: {out}")


if __name__ == "__main__":
    sys.exit(main())
