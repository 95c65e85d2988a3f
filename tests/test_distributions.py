"""Wheel and source distribution: what is in them, and that each works in a fresh environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


def command(*words: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command that must end well; its output."""
    done = subprocess.run(list(words), cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and sdist, built as a release builds them: the sdist from a clean copy, the wheel from the sdist."""
    for name in ("build", "twine"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install -e '.[release]')")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout to copy")
    folder = tmp_path_factory.mktemp("distributions")
    command("git", "clone", "-q", str(ROOT), "clone", cwd=folder)
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "out")
    command(*build, cwd=folder / "clone", DFKD_BUILD_EXT="1")
    (wheel,), (sdist,) = (folder / "out").glob("*.whl"), (folder / "out").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_twine_finds_nothing_amiss(distributions: dict[str, Path], tmp_path: Path) -> None:
    found = command(sys.executable, "-m", "twine", "check", "--strict", *distributions.values(), cwd=tmp_path)
    assert found.count("PASSED") == 2


def test_the_wheel_has_the_extension_and_the_data(distributions: dict[str, Path]) -> None:
    assert "-cp311-abi3-" in distributions["wheel"].name
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    wanted = ("dfkd_kernels/_C.abi3.so", "dfkd_fast/costs/cards.toml", "dfkd_fast/presets/nayer/digits.toml")
    assert not [name for name in (*wanted, "dfkd_fast/models/zoo/LICENSE.akamaster") if name not in names]
    assert not [name for name in names if name.startswith(("tests/", "bench/", "docs/"))]


def test_the_source_distribution_has_what_a_build_needs(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as archive:
        names = archive.getnames()
    assert any(name.endswith("setup.py") for name in names)
    assert sum(name.endswith((".cpp", ".cu", ".h")) for name in names) == sum(
        path.suffix in (".cpp", ".cu", ".h") for path in (ROOT / "csrc").rglob("*")
    )


def test_the_wheel_works_in_a_fresh_environment(distributions: dict[str, Path], tmp_path: Path) -> None:
    """Its dependencies are those of this environment; the package itself comes from the wheel alone."""
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    command(python, "-m", "pip", "install", "-q", "--no-deps", distributions["wheel"], cwd=tmp_path)
    place = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    dependencies = str(Path(torch.__file__).parents[1])
    (place / "zz_dependencies.pth").write_text(f"import sys; sys.path.append({dependencies!r})\n")
    assert "nayer" in command(tmp_path / "fresh" / "bin" / "dfkd-fast", "ls", cwd=tmp_path)
    code = (
        "import dfkd_fast, dfkd_kernels; print(dfkd_fast.__file__); "
        "print({row.backend for row in dfkd_kernels.backends() if row.active})"
    )
    where, backends = command(python, "-c", code, cwd=tmp_path).splitlines()
    assert where.startswith(str(tmp_path / "fresh"))
    assert "native" in backends
