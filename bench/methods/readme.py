"""`make readme`: the table of methods in README.md, from the facts that `dfkd-fast ls methods` shows."""

from __future__ import annotations

from pathlib import Path

from table import write_between

from dfkd_fast.catalog import CIFAR10_PAIR, FACTS, METHODS
from dfkd_fast.cli.ls import needs

README = Path(__file__).resolve().parents[2] / "README.md"

HEAD = f"""| method | `METHOD` | paper | loop | needs | digits | CIFAR-10, {CIFAR10_PAIR}, published |
|---|---|---|---|---|---|---|"""


def methods_table() -> str:
    """A row for each method of the catalogue, in its order."""
    return "\n".join([HEAD, *map(_row, METHODS)])


def _row(name: str) -> str:
    facts = FACTS[name]
    title = f"[{facts.title}](docs/methods/{facts.page or name}.md)"
    number = facts.arxiv
    paper = f"{facts.venue}, [{number}](https://arxiv.org/abs/{number})" if number else facts.venue
    digits = "not measured" if facts.digits is None else f"{facts.digits:.1f} %"
    cifar10 = "{:.2f} % ({})".format(*facts.cifar10) if facts.cifar10 else ""
    needed = needs(facts).replace("*", r"\*")
    return f"| {title} | `{name}` | {paper} | {facts.loop} | {needed} | {digits} | {cifar10} |"


if __name__ == "__main__":
    write_between(README, "methods", methods_table())
