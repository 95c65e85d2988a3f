"""Every sentence of the README has a row in docs/claims.md that names what shows it, and what is named is there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from dfkd_fast.catalog import presets
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.training.records import run_record

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| (?!words of|---)(.+?) \| (.+?) \|$", (ROOT / "docs/claims.md").read_text(), flags=re.MULTILINE)


def sentences(text: str) -> list[str]:
    """The prose: without code, tables, headings, pictures and what is only a link."""
    text = re.sub(r"```.*?```|<!-- methods -->.*?<!-- /methods -->", "", text, flags=re.DOTALL)
    found: list[str] = []
    for part in re.split(r"\n\s*\n|\n(?=- )", text):
        line = " ".join(part.split()).removeprefix("- ")
        if line and not line.startswith(("#", "![")):
            found += re.split(r"(?<=\.)\*?\s+(?=[*A-Z`\[])", line)
    return [sentence for sentence in found if re.sub(r"\[[^\]]*\]\([^)]*\)( \([^)]*\))?[,.: ]*", "", sentence)]


@pytest.mark.parametrize("sentence", sentences(README))
def test_a_sentence_has_its_row(sentence: str) -> None:
    assert any(words in sentence for words, _ in ROWS), "docs/claims.md says nothing of it"


@pytest.mark.parametrize(("words", "shown"), ROWS)
def test_a_row_is_of_the_readme_and_what_it_names_is_there(words: str, shown: str) -> None:
    assert any(words in sentence for sentence in sentences(README)), "no sentence has these words"
    for place in re.findall(r"`([\w./-]+(?:::\w+)?)`", shown):
        file, _, test = place.partition("::")
        assert (ROOT / file).is_file(), file
        if test:
            names = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
            assert test in names, place


def test_a_new_sentence_is_found_missing() -> None:
    text = "# Title\n\nIt is *fast*. It makes coffee.\n\n- `x`: and tea.\n\n[Link](to), [other](there) (x).\n"
    assert sentences(text) == ["It is *fast*.", "It makes coffee.", "`x`: and tea."]
    assert not any(words in "It makes coffee." for words, _ in ROWS)


def test_the_demos_student_is_a_third_of_its_teacher() -> None:
    from dfkd_fast.models.factory import load_model

    assert "digits-quick" in presets("nayer")
    config = load_config(default_config("nayer"), preset="digits-quick")
    known = {"num_classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    teacher, student = (
        sum(value.numel() for value in load_model(name, **known)[0].parameters())
        for name in (config.teacher, config.student)
    )
    assert 0.25 < student / teacher < 0.4


def test_run_json_has_what_the_readme_says() -> None:
    source = inspect.getsource(run_record.write_run_record) + inspect.getsource(run_record.run_costs)
    for key in ("top1_last", "agreement", "_seconds", "_flops", "_mfu", "versions", "label_text"):
        assert key in source, key
