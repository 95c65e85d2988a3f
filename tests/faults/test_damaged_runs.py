"""A damaged file of a run folder is found, or makes no difference: no damage makes another student."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cases import outcome
from harness import Recorded, Server, fresh

IN_SAMPLE = 14
FLIPS = 20


class Damage(NamedTuple):
    """What happens to a file."""

    file: str
    how: str
    number: int = 0

    def do(self, folder: Path, other: Path) -> None:
        """Damage the file; `other` is the folder of a run with another seed."""
        path = folder / self.file
        content = bytearray(path.read_bytes())
        draw = random.Random(f"{self.file} {self.how} {self.number}")
        if self.how == "flip":
            used = len(content) if path.suffix != ".bin" else min(len(content), 150_000)  # a pool's file is mostly room
            content[draw.randrange(used)] ^= 1 << draw.randrange(8)
        elif self.how == "cut":
            del content[draw.randrange(len(content)) :]
        elif self.how == "zero":
            content = bytearray(len(content))
        elif self.how == "empty":
            content.clear()
        else:
            content[:] = (other / self.file).read_bytes()
        path.write_bytes(content)


def damages(folder: Path, other: Path) -> Iterator[Damage]:
    """Every damage of every file."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        file = str(path.relative_to(folder))
        yield from (Damage(file, "flip", number) for number in range(FLIPS))
        yield from (Damage(file, how) for how in ("cut", "zero", "empty"))
        if (other / file).exists():
            yield Damage(file, "swapped")


@pytest.fixture(scope="module")
def stopped(
    server: Server, recorded: Callable[[str], Recorded], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recorded, Path]:
    """A run that was stopped midway, and another one's folder."""
    run = recorded("resume")
    other = fresh(tmp_path_factory.mktemp("other") / "run")
    assert server.run([*run.case.before, "--seed", "5"], other).status == 0
    return run, other


def judged(server: Server, run: Recorded, other: Path, damage: Damage, folder: Path) -> str:
    """`found`, `no effect`, or what is wrong."""
    fresh(folder, run.start)
    damage.do(folder, other)
    ended = server.run(run.case.resume, folder)
    if ended.refusal is not None:
        return "found"
    if ended.status != 0:
        return f"WRONG {ended}"
    want, got = run.outcome, outcome(folder)
    odd = [name for name in want if name.endswith((".safetensors", ".bin")) and want[name] != got.get(name)]
    return f"WRONG: another {odd} ({ended})" if odd else "no effect"


@pytest.mark.slow
def test_a_sample_of_damages(server: Server, stopped: tuple[Recorded, Path], tmp_path: Path) -> None:
    """One of each kind and file in turn, drawn by a seed."""
    run, other = stopped
    draw = random.Random("damages")
    chosen = draw.sample(list(damages(run.start, other)), IN_SAMPLE)
    found = {damage: judged(server, run, other, damage, tmp_path / "run") for damage in chosen}
    assert not [f"{damage}: {what}" for damage, what in found.items() if what.startswith("WRONG")]


@pytest.mark.nightly
@pytest.mark.timeout(0)
@pytest.mark.parametrize("how", ["flip", "cut", "zero", "empty", "swapped"])
def test_all_damages(
    server: Server,
    stopped: tuple[Recorded, Path],
    tmp_path: Path,
    how: str,
    record_property: Callable[[str, object], None],
) -> None:
    run, other = stopped
    chosen = [damage for damage in damages(run.start, other) if damage.how == how]
    found = {damage: judged(server, run, other, damage, tmp_path / "run") for damage in chosen}
    for what in ("found", "no effect"):
        record_property(what, list(found.values()).count(what))
    assert not [f"{damage}: {what}" for damage, what in found.items() if what.startswith("WRONG")]


def test_a_damaged_student_is_found(server: Server, recorded: Callable[[str], Recorded], tmp_path: Path) -> None:
    """Where it is read again."""
    run, draw = recorded("resume"), random.Random("student")
    file = tmp_path / "run" / "student.safetensors"
    file.parent.mkdir()
    shutil.copy(run.end / "run" / "student.safetensors", file)
    whole = file.read_bytes()
    command = ["teacher", "info", "student.safetensors"]
    assert server.run(command, file.parent).status == 0
    for _ in range(FLIPS):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        ended = server.run(command, file.parent)
        assert ended.refusal is not None, str(ended)
