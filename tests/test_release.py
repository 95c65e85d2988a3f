"""A release's own files: version, changelog, citation, workflow, and what the source distribution takes along."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import dfkd_fast

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [PROJECT["version"]] == [dfkd_fast.__version__]
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_citation_has_the_projects_licences() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    licences = re.search(r"^license:\n((?:  - .+\n)+)", citation, re.MULTILINE)
    assert licences is not None
    assert " AND ".join(re.findall(r"- (.+)", licences[1])) == PROJECT["license"]


def test_python_versions_agree() -> None:
    least = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {least}" in PROJECT["classifiers"]
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8")
    assert f'python-version: "{least}"' in workflow


def test_the_workflow_makes_the_projects_checks() -> None:
    """It calls the script that everybody else calls, and no checks of its own."""
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8")
    assert re.findall(r"- run: (.+)", workflow) == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()
