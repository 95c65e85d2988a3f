"""Whatever a page calls not measured has a command beside it that would measure it, and the command exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfkd_fast.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("kernels/**/*.md"))]
WORDS = re.compile(r'(?<!")\bnot measured\b(?!")', re.IGNORECASE)  # in quotation marks it is the words that are meant
COMMAND = re.compile(r"`(make|python|dfkd-fast) ([^`]+)`")


def without_command(text: str) -> list[str]:
    """Paragraphs of a page that say so and name no command; a table may have it in its section's text."""
    found = []
    for section in re.split(r"^#+ .*$", text, flags=re.MULTILINE):
        for paragraph in re.split(r"\n\s*\n", section):
            where = section if re.search(r"^\|.*not measured", paragraph, re.IGNORECASE | re.MULTILINE) else paragraph
            if WORDS.search(paragraph) and not any(exists(*command) for command in COMMAND.findall(where)):
                found.append(paragraph.strip())
    return found


def exists(program: str, arguments: str) -> bool:
    first, *_ = words = arguments.split()
    if program == "make":
        return makes(*words)
    if program == "dfkd-fast":
        return first in COMMANDS
    return first == "-m" or any((ROOT / word).is_file() for word in words)


def makes(target: str, *settings: str) -> bool:
    """Whether the Makefile has the target, and the suite that it is given."""
    makefile = (ROOT / "Makefile").read_text()
    suites = [value for name, _, value in (setting.partition("=") for setting in settings) if name == "SUITE"]
    wanted = [rf"{target}:", *(rf"{target.upper() if target == 'bench' else 'TEST'}_{suite} +:=" for suite in suites)]
    return all(re.search(rf"^{line}", makefile, re.MULTILINE) for line in wanted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_would_fill_it(page: Path) -> None:
    assert without_command(page.read_text(encoding="utf-8")) == []


def test_what_the_check_sees() -> None:
    assert without_command("On a GPU: not measured.\n\nOther: `make test`") == ["On a GPU: not measured."]
    assert without_command("On a GPU: not measured\n(`make no-such-target`).") != []
    assert without_command("On a GPU: not measured (`python bench/no_such.py`).") != []
    assert without_command("On a GPU: not measured (`make bench SUITE=steps`).") == []
    assert without_command("On a GPU: not measured (`make bench SUITE=no-such`).") != []
    assert without_command("# A\n`make test`\n\n| x | not measured |\n\n# B\n\n| y | not measured |") == [
        "| y | not measured |"
    ]
    assert without_command('"Not measured" means that.\n\nNot measured (`dfkd-fast eval RUN`).') == []
