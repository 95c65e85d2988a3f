"""A fault at any file operation costs no result: after a kill, a power cut or an error of the disk the run goes on and
comes to the same bytes, or one line says why it does not.

A seeded sample runs with every change of the code; `make test SUITE=nightly` runs all of them and goes on where it was
stopped (build/faults); bench/reliability.py makes the table of docs/reliability.md from what it found.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from cases import NAMES
from disk import contents
from harness import CRASHES, ERRORS, Recorded, Server, Trial, attempt, left_by

ROOT = Path(__file__).parent.parent.parent
PER_CASE = {"pool": 14, "stepwise": 10, "teacher": 12, "resume": 6}
FAULTS = (*CRASHES, "halfway", *ERRORS, "read EIO", "read EACCES")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_all_faults(server: Server, recorded: Callable[[str], Recorded], tmp_path: Path, name: str) -> None:
    """Every kind of fault in turn, each at an operation drawn by a seed."""
    run, draw = recorded(name), random.Random(f"faults of {name}")
    by_fault = {fault: [trial for trial in run.trials() if trial.fault == fault] for fault in FAULTS}
    wrong: list[str] = []
    kinds = sorted(by_fault, key=lambda _: draw.random())
    for number in range(PER_CASE[name]):
        trial = draw.choice(by_fault[kinds[number % len(kinds)]])
        found = attempt(server, run, trial, tmp_path / "run", seed=number)
        wrong += [] if acceptable(trial, found) else [f"{trial}: {found}"]
    assert not wrong, "\n".join(wrong)


def acceptable(trial: Trial, found: str) -> bool:
    """A crash costs nothing; where an error persists or what is read fails, one line may say so."""
    return found in ("same", "survived") or (found.startswith("refused: ") and trial.fault not in CRASHES)


@pytest.mark.nightly
@pytest.mark.timeout(0)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_all_faults(server: Server, recorded: Callable[[str], Recorded], tmp_path: Path, name: str, fault: str) -> None:
    """At every operation. Crashes that leave the same bytes are tried once."""
    run = recorded(name)
    file = ROOT / "build" / "faults" / code_hash() / f"{name}, {fault}.jsonl"
    known = {row["trial"]: row["found"] for row in read_rows(file)}
    by_content: dict[str, str] = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as results:
        for trial in run.trials():
            if trial.fault != fault or str(trial) in known:
                continue
            key = str(trial)
            if fault in CRASHES or fault == "halfway":
                left_by(run, trial, tmp_path / "left")
                key = sha256(repr(sorted(contents(tmp_path / "left").items())).encode()).hexdigest()
            if key not in by_content:
                by_content[key] = attempt(server, run, trial, tmp_path / "run")
            known[str(trial)] = by_content[key]
            results.write(json.dumps({"trial": str(trial), "found": by_content[key]}) + "\n")
            results.flush()
    wrong = {trial: found for trial, found in known.items() if not acceptable(Trial(fault, 0), found)}
    assert known
    assert not wrong, f"{name}, {fault}: {len(wrong)} of {len(known)}: {dict(list(wrong.items())[:5])}"


def code_hash() -> str:
    """What results stand for: the code that is tested, and the tests."""
    return sha256(b"".join(file.read_bytes() for file in files_under_test())).hexdigest()[:12]


def files_under_test() -> list[Path]:
    """Sources of both packages, the compiled extension, the tests themselves."""
    kernels = [file for ending in ("*.py", "*.so") for file in (ROOT / "kernels" / "dfkd_kernels").rglob(ending)]
    files = [*(ROOT / "dfkd_fast").rglob("*.py"), *kernels, *Path(__file__).parent.glob("*.[pc]*")]
    return sorted(file for file in files if file.is_file())


def test_results_stand_for_all_that_runs() -> None:
    """The operators, too, and their compiled form."""
    found = set(files_under_test())
    written = {ROOT / "dfkd_fast" / "files" / "write.py", ROOT / "kernels" / "dfkd_kernels" / "backend.py"}
    assert written | {Path(__file__)} <= found
    native = importlib.util.find_spec("dfkd_kernels._C")
    assert native is None or Path(native.origin or "") in found


def read_rows(file: Path) -> list[dict[str, str]]:
    """What an earlier start has found; a line that it was stopped in is left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
