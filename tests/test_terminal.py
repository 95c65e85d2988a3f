"""Terminal output: control sequences in a name do nothing, and pasted commands mean what they say."""

from __future__ import annotations

import ast
import io
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd_fast.cli.main import main
from dfkd_fast.messages.terminal import command, page, prepare_streams, quoted, show, shown

PACKAGE = Path(__file__).parent.parent / "dfkd_fast"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("cat", "cat"),
        ("\u30c7\u30fc\u30bf caf\xe9", "\u30c7\u30fc\u30bf caf\xe9"),
        ("\x1b]0;pwned\x07\x1b[31mcat", r"\x1b]0;pwned\x07\x1b[31mcat"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x9b31m", r"\x9b31m"),  # the one-byte form of ESC [
        ("\u202egnp.exe", r"\u202egnp.exe"),  # turns the text around
        (os.fsdecode(b"c\xe9t"), r"c\xe9t"),
        ("\u3000", "\u3000"),
        (7, "7"),
    ],
)
def test_control_characters_are_shown_and_all_others_stay(text: object, seen: str) -> None:
    assert shown(text) == seen


@given(st.text(st.characters(codec=None)))
def test_whatever_a_name_holds_it_is_one_printable_line(text: str) -> None:
    line = shown(text)
    assert not any(character in "\x1b\x07\n\r\x9b" for character in line)
    line.encode("utf-8")  # no surrogates are left


def test_a_name_of_a_megabyte_does_not_fill_the_screen() -> None:
    assert len(shown("x" * 10**6)) < 5000


@given(st.binary(min_size=1, max_size=12).filter(lambda raw: b"\0" not in raw))
def test_a_printed_command_is_pasted_as_it_was(raw: bytes) -> None:
    """Any name that a file can have: bash reads what `quoted` wrote as the same bytes."""
    word = quoted(os.fsdecode(raw))
    assert shown(word) == word, "it can be printed"
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, env={**os.environ, "LC_ALL": "C"})
    assert done.stdout == raw


def test_a_folder_that_starts_with_a_dash_is_no_flag() -> None:
    assert command("train", "--resume", Path("-x y")) == "dfkd-fast train --resume './-x y'"


def test_what_an_encoding_lacks_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    prepare_streams([stream, io.StringIO()])
    show("\u30c7\u30fc\u30bf", file=stream)
    page("\xe9", file=stream)
    assert stream.buffer.getvalue() == b"\\u30c7\\u30fc\\u30bf\n\\xe9\n"  # type: ignore[attr-defined]


def test_a_mistake_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "\x1b[31mred\nand more", "--data", "digits"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "dfkd-fast: eval \\x1b[31mred\\nand more: no such run folder or file\n"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_everything_is_printed_by_the_functions_that_escape(path: Path) -> None:
    """`print` stands in terminal.py alone, and `page`, which escapes nothing, is given texts of our own: no name of a
    file or a class. Help escapes the values that it shows.
    """
    ours = ("USAGE", "PAGE", "SCRIPTS", "config_text", "_stderr")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [(call, call.func.id) for call in calls if isinstance(call.func, ast.Name)]
    if path.stem != "terminal":
        assert not [call.lineno for call, name in named if name == "print"]
    for call in [call for call, name in named if name == "page"]:
        assert any(name in ast.unparse(call.args[0]) for name in ours), call.lineno
