"""One process with torch and the fault layer for all trials, and each case run once without faults."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cases import Case, make_cases
from harness import Recorded, Server, build_shim, record


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The process that runs command lines with faults in them."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the fault layer with")
    server = Server(build_shim(tmp_path_factory.mktemp("shim")))
    yield server
    server.close()


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The runs that faults are put into, by name."""
    return make_cases(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def recorded(
    server: Server, cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Recorded]:
    """A case by name, run to its end."""
    known: dict[str, Recorded] = {}

    def find(name: str) -> Recorded:
        if name not in known:
            known[name] = record(server, cases[name], Path(tmp_path_factory.mktemp(name)))
        return known[name]

    return find
