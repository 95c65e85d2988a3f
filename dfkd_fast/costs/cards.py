"""Peak rates of cards: the table of datasheets (cards.toml), and rates that `make gpu-check` has measured on some."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from dfkd_fast.errors import UserError, unknown

FILE = "cards.toml"
DATASHEET = "datasheet x assumed efficiency"
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""a tensor's dtype -> the precision that its products are computed in, unless float32 is asked for as tf32"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A device as the roofline knows it."""

    key: str
    """as `--on` names it"""
    name: str
    """as its driver says it"""
    source: str
    """of its datasheet's figures"""
    matmul: dict[str, float]
    """precision -> FLOP/s of matrix products at best, accumulated in float32"""
    bandwidth: float
    """bytes/s of its memory at best"""
    memory_gb: float
    processors: int
    """streaming multiprocessors; what a kernel needs as many tiles of, to use all of it"""
    host_bandwidth: float
    """bytes/s from the host's memory"""
    products: dict[str, float]
    """kind of convolution or product -> assumed part of `matmul`"""
    traffic: dict[str, float]
    """kind -> assumed part of `bandwidth`"""
    launch_us: float
    least_us: float
    host_us: float
    view_us: float
    wait_us: float
    measured: dict[str, list[list[float]]] = field(default_factory=dict)
    """`kind/dtype` -> points: (bytes, seconds) of traffic, (shape of the kernel ..., seconds) of products"""
    measured_on: str = ""
    """date, where something is measured"""

    @property
    def rates_from(self) -> str:
        """Where its rates come from, in words."""
        return f"measured on {self.measured_on} by gpu-check" if self.measured else DATASHEET

    def fastest(self) -> Card:
        """The same card if every kernel reached the datasheet's rates, and nothing were between them."""
        return replace(
            self,
            products=dict.fromkeys(self.products, 1.0),
            traffic=dict.fromkeys(self.traffic, 1.0),
            launch_us=0.0,
            least_us=0.0,
            measured={},
        )


def table() -> dict[str, Any]:
    """cards.toml as it is."""
    return tomllib.loads(files("dfkd_fast.costs").joinpath(FILE).read_text(encoding="utf-8"))


def table_file() -> Path:
    """Where cards.toml lies: what gpu-check writes to, in a checkout."""
    return Path(str(files("dfkd_fast.costs").joinpath(FILE)))


def read_card(key: str) -> Card:
    """The card that `--on` names. Raises UserError for one that is not in the table."""
    known = table()
    if key not in known["cards"]:
        raise unknown("--on", key, known["cards"])
    return card_of(key, known["cards"][key], known["assumed"])


def card_of(key: str, entry: dict[str, Any], assumed: dict[str, Any]) -> Card:
    """A card from its entry in the table, what it does not say from what is assumed of all."""
    measured = dict(entry.get("measured", {}))
    date = measured.pop("on", "")
    figures = {
        name: measured.pop(name, assumed[name]) for name in ("launch_us", "least_us", "host_us", "view_us", "wait_us")
    }
    names = ("name", "source", "matmul", "bandwidth", "memory_gb", "processors", "host_bandwidth")
    return Card(
        key=key,
        **{name: entry[name] for name in names},
        products=assumed["products"],
        traffic=assumed["traffic"],
        measured=measured,
        measured_on=date,
        **figures,
    )


def key_for(name: str, memory_gb: float) -> str | None:
    """Which card of the table a driver's name and memory mean; None: none of them."""
    known = table()["cards"]
    models = {key: re.findall(r"[a-z]*\d+", entry["name"].lower())[0] for key, entry in known.items()}
    found = [key for key, model in models.items() if model in re.findall(r"[a-z]*\d+", name.lower())]
    return min(found, key=lambda key: abs(known[key]["memory_gb"] - memory_gb), default=None)


def with_measured(text: str, key: str, measured: Mapping[str, Any]) -> str:
    """The table's text with what was measured on a card, in the place of what was there; comments stay.

    `measured` has the date as "on", microseconds by the names of `Card`, and points by `kind/dtype`.
    """
    head = f"[cards.{key}.measured]"
    blocks = re.split(r"(?m)^(?=\[)", text)
    kept = "".join(block for block in blocks if not block.startswith(head)).rstrip()
    lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in measured.items()]
    return "\n".join([kept, "", head, *lines, ""])


def precision_on(card: Card, precision: str) -> str:
    """What `--precision` comes to on a card. Raises UserError for one that it does not multiply in hardware."""
    if precision == "auto":
        return "bf16" if "bf16" in card.matmul else "fp32"
    if precision not in card.matmul:
        raise UserError(f"--precision {precision}: {card.name} does not multiply it; choose {' or '.join(card.matmul)}")
    return precision
