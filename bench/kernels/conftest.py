"""Fixtures of the kernel benchmarks. Rows are measured through pytest-benchmark and reported together at the end.

`make bench SUITE=kernels` runs them all; `--seconds` is the time that each row may take, `--results` where JSON lines
go, `--resume` leaves out what has rows there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from memory import keep_freed_memory
from report import RESULTS, Goal, Limit, Row, append, device_name, measured
from timing import Race, Variants

import dfkd_kernels

ROWS = pytest.StashKey[list[Row]]()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernel benchmarks")
    group.addoption("--seconds", type=float, default=6.0, help="time for each row, warm-up apart")
    group.addoption("--results", type=Path, default=RESULTS, help="folder for the JSON lines")
    group.addoption("--resume", action="store_true", help="leave out what has rows in that folder")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    keep_freed_memory()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Ratios of single-threaded code: teams of threads on shared cores measure each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.compiler.reset()


@pytest.fixture
def device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return DEVICE


Compare = Callable[..., Row]


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest) -> Iterator[Compare]:
    """compare(name, variants, shape=, dtype=, goals=, limits=, inner=) measures the variants and records a row.

    What the test adds to the row is recorded too: it is written when the test ends, so that none is lost with the next.
    """
    seconds, results = request.config.getoption("--seconds"), request.config.getoption("--results")
    if request.config.getoption("--resume") and request.node.nodeid in measured(DEVICE, results):
        pytest.skip("its rows are there")
    rows: list[Row] = []

    def run(
        name: str,
        variants: Variants,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        goals: tuple[Goal, ...] = (),
        limits: tuple[Limit, ...] = (),
        inner: int = 1,
    ) -> Row:
        race = Race(variants, DEVICE, inner)
        rounds = max(5, min(500, int(seconds / race.warm_up(2))))
        benchmark.pedantic(race.round, rounds=rounds, iterations=1)
        row = Row(name=name, shape=shape, dtype=str(dtype)[6:], goals=goals, limits=limits, seconds=race.seconds)
        benchmark.extra_info.update(row.record())
        rows.append(row)
        return row

    yield run
    request.config.stash[ROWS].extend(rows)
    append(rows, DEVICE, results, request.node.nodeid)


@pytest.fixture
def on_gpu(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """on_gpu(row) skips the test where there is no GPU and lists the row as not measured."""

    def check(row: Row) -> None:
        if DEVICE.type != "cuda":
            row.reason = "no CUDA device"
            request.config.stash[ROWS].append(row)
            pytest.skip(row.reason)

    return check


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print the table, last."""
    rows = config.stash[ROWS]
    if not rows:
        return
    active = [f"{row.op}: {row.backend}" for row in dfkd_kernels.backends() if row.active]
    terminalreporter.write_line(f"\nkernels on {device_name(DEVICE)} ({', '.join(active)})")
    for row in rows:
        for line in row.lines():
            terminalreporter.write_line(line)
    terminalreporter.write_line(f"appended to {config.getoption('--results')}")
