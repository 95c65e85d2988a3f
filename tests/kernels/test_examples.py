"""The examples run, notice a loss that is not the hooks', and change as many lines as their README says."""

import difflib
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import dfkd_kernels

FOLDER = Path(__file__).parents[2] / "kernels/examples"
SCRIPTS = ("deepinversion", "sre2l_recover", "nayer_synthesis")
TINY = ["--width", "4", "--image-size", "16", "--batch-size", "4", "--steps", "20"]


@pytest.fixture(params=SCRIPTS)
def example(request, monkeypatch):
    """The script as a module. Its neighbours have common names, so they are forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module(request.param)
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_runs(example, capsys):
    example.main(TINY)
    printed = capsys.readouterr().out
    assert "same loss and image gradient in float64" in printed
    before, after = map(float, re.search(r"loss (\S+) -> (\S+) in 22 steps", printed).groups())
    assert after < before
    assert re.search(r"\d ms with hooks, .* ms with moments: \d+\.\d\d times as fast", printed)


def test_another_loss_is_noticed(example, monkeypatch):
    """A thousandth more, and an unbiased variance, which is a common slip."""
    ours = dfkd_kernels.bn_stat_loss
    for wrong in (lambda *a, **k: 1.001 * ours(*a, **k), lambda *a, **k: ours(*a, **k, unbiased=True)):
        monkeypatch.setattr(example, "bn_stat_loss", wrong)
        with pytest.raises(AssertionError, match="loss or image gradient differ by"):
            example.main(TINY)


def test_three_lines_change(example):
    if example.__name__ == "nayer_synthesis":  # the first of the three is in __init__, beside the averages
        forms, changed = [example.Before.__call__, example.After.__call__], 2
    else:
        forms, changed = [example.before, example.after], 3
    lines = [inspect.getsource(form).splitlines()[1:] for form in forms]
    signs = [line[0] for line in difflib.ndiff(*lines) if '"""' not in line]
    assert signs.count("-") == signs.count("+") == changed


@pytest.mark.parametrize("script", SCRIPTS)
def test_readme_names_every_script(script):
    assert f"python kernels/examples/{script}.py" in (FOLDER / "README.md").read_text()
