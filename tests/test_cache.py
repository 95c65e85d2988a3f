"""The cache where there is no home, or none that can be written to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from dfkd_fast.errors import UserError
from dfkd_fast.files import cache


@pytest.fixture(autouse=True)
def _own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache._temporary.cache_clear()


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Path.home answers for a number without a name."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)


def test_what_was_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_home(monkeypatch)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "mine"))
    assert cache.cache_folder("text") == tmp_path / "mine/text"


def test_the_home_folder_serves_where_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder("text") == tmp_path / "home/.cache/dfkd-fast/text"


@pytest.mark.parametrize("home", [None, "/dev/null", "/proc"])
def test_without_one_a_folder_of_the_users_own_serves_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], home: str | None
) -> None:
    if home is None:
        no_home(monkeypatch)
    else:
        monkeypatch.setenv("HOME", home)
    found = cache.cache_folder("teachers")
    assert cache.cache_folder("text").parent == found.parent == tmp_path / f"dfkd-fast-{os.getuid()}"
    assert found.parent.stat().st_mode & 0o777 == 0o700
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(found.parent) in said
    assert cache.VARIABLE in said


@pytest.mark.parametrize("kind", ["a link", "open to others"])
def test_weights_that_somebody_else_may_have_put_there_are_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    no_home(monkeypatch)
    folder = tmp_path / f"dfkd-fast-{os.getuid()}"
    if kind == "a link":
        folder.symlink_to(tmp_path)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(UserError, match=f"{cache.VARIABLE}.*alone"):
        cache.cache_folder("teachers")
