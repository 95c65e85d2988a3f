"""Seconds of kernels from a datasheet or from measured points, and the table of cards."""

import math
import tomllib
from collections import Counter
from dataclasses import replace

import pytest

from dfkd_fast.costs.cards import DATASHEET, card_of, key_for, precision_on, read_card, table, table_file, with_measured
from dfkd_fast.costs.kernels import KINDS, Kernel
from dfkd_fast.costs.recorder import Part
from dfkd_fast.costs.roofline import GAPS, GROUPS, estimate, flops_of, product_seconds, seconds, traffic_seconds
from dfkd_fast.errors import UserError

CARDS = ("a100-80gb", "a100-40gb", "h100", "h200", "b200", "rtx4090", "l4", "v100")
COPY = Kernel("copy", "clone", "float32", 0.0, 10**9, 1)
SHAPE = (256, 32, 128, 128, 9, 1, 1)
CONV = Kernel("conv", "convolution", "bfloat16", flops_of("conv", SHAPE), 10**8, 1, SHAPE)


@pytest.mark.parametrize("key", CARDS)
def test_every_card_has_what_a_roofline_needs(key: str) -> None:
    card = read_card(key)
    assert card.rates_from == DATASHEET
    assert card.source
    assert set(card.traffic) == {*KINDS}
    assert all(0 < share < 1 for share in (*card.traffic.values(), *card.products.values()))
    assert card.matmul["fp16"] > card.matmul["fp32"] > 1e13
    assert card.bandwidth > 1e11
    assert card.memory_gb >= 24


def test_the_table_has_the_cards_that_are_promised() -> None:
    assert tuple(sorted(table()["cards"])) == tuple(sorted(CARDS))
    with pytest.raises(UserError, match=r"--on a100: .*choose a100-80gb, a100-40gb"):
        read_card("a100")


def test_precisions_are_those_that_the_card_multiplies() -> None:
    assert precision_on(read_card("h100"), "auto") == "bf16"
    assert precision_on(read_card("v100"), "auto") == "fp32"
    with pytest.raises(UserError, match=r"--precision bf16: Tesla V100.* choose fp16 or fp32"):
        precision_on(read_card("v100"), "bf16")


def test_traffic_takes_its_part_of_the_bandwidth() -> None:
    card = read_card("a100-80gb")
    assert seconds(COPY, card) == pytest.approx(1e9 / (2039e9 * card.traffic["copy"]))
    assert seconds(COPY._replace(bytes=8), card) == pytest.approx(1e-6 * card.least_us)


def test_a_large_convolution_takes_its_part_of_the_products_and_fp32_longer() -> None:
    card = read_card("a100-80gb")
    assert seconds(CONV, card) == pytest.approx(CONV.flops / (312e12 * card.products["conv"]))
    single = CONV._replace(dtype="float32")
    assert seconds(single, card) == pytest.approx(16 * seconds(CONV, card))
    assert seconds(single, card, single="tf32") == pytest.approx(2 * seconds(CONV, card))


def test_few_tiles_and_few_channels_use_a_part_of_the_card() -> None:
    card = replace(read_card("a100-80gb"), bandwidth=1e18)
    few = CONV._replace(shape=(1, 8, 512, 512, 9, 1, 1), flops=flops_of("conv", (1, 8, 512, 512, 9, 1, 1)))
    assert seconds(few, card) == pytest.approx(few.flops / (312e12 * card.products["conv"]) * card.processors / 8)
    thin = CONV._replace(shape=(256, 32, 3, 128, 9, 1, 1), flops=flops_of("conv", (256, 32, 3, 128, 9, 1, 1)))
    assert seconds(thin, card) == pytest.approx(thin.flops / (312e12 * card.products["conv"]) * 32 / 27)  # k of 27


def test_measured_points_are_met_and_joined_along_logarithms() -> None:
    points = [[1e3, 2e-6], [1e5, 8e-6], [1e7, 8e-4]]
    assert [traffic_seconds(count, points) for count, _ in points] == pytest.approx([taken for _, taken in points])
    assert traffic_seconds(10, points) == 2e-6
    assert traffic_seconds(1e8, points) == pytest.approx(8e-3)
    assert traffic_seconds(1e4, points) == pytest.approx(4e-6)
    other = (8, 7, 16, 16, 9, 1, 1)
    measured = [[*SHAPE, 1e-3], [*other, 1e-3]]
    assert product_seconds(CONV, measured) == pytest.approx(1e-3, rel=0.01)
    between = product_seconds(CONV._replace(shape=(64, 16, 64, 64, 9, 1, 1)), measured)
    rates = sorted(flops_of("conv", shape) / 1e-3 for shape in (SHAPE, other))
    assert rates[0] < CONV.flops / between < rates[1]


def test_a_host_that_launches_ahead_is_waited_for_and_a_graph_is_not() -> None:
    card = read_card("h100")
    part = Part([COPY._replace(bytes=8)] * 100, calls=300, waits=2)
    graph, ahead = (estimate(part, card, host) for host in ("graph", "ahead"))
    assert graph.seconds == pytest.approx(100e-6 * (card.least_us + card.launch_us))
    assert ahead.seconds == pytest.approx(1e-6 * (100 * card.host_us + 200 * card.view_us + 2 * card.wait_us))
    assert estimate(part, replace(card, view_us=5.0), "serial").seconds == pytest.approx(graph.seconds + 1e-3)
    assert sum(ahead.by_group().values()) == pytest.approx(ahead.seconds)
    assert ahead.by_group()[GAPS] == ahead.gaps
    assert Counter(kind for kinds in GROUPS.values() for kind in kinds) == Counter(KINDS)


def test_what_is_measured_is_written_into_the_table_and_comes_first() -> None:
    text = table_file().read_text()
    measured = {"on": "2026-01-31", "least_us": 2.5, "copy/float32": [[1e3, 1e-6], [1e9, 1e-2]]}
    once = with_measured(text, "h200", measured)
    assert once.startswith(text.rstrip())
    assert with_measured(once, "h200", measured) == once
    known = tomllib.loads(once)
    card = card_of("h200", known["cards"]["h200"], known["assumed"])
    assert card.rates_from == "measured on 2026-01-31 by gpu-check"
    assert card.least_us == 2.5
    assert seconds(COPY, card) == pytest.approx(1e-2)
    assert math.isclose(seconds(CONV, card), seconds(CONV, read_card("h200")))
    assert seconds(COPY, card.fastest()) == pytest.approx(1e9 / 4800e9)


def test_a_driver_names_a_card() -> None:
    names = {
        "NVIDIA A100 80GB PCIe": (85, "a100-80gb"),
        "NVIDIA A100-SXM4-40GB": (42, "a100-40gb"),
        "NVIDIA L40S": (48, None),
    }
    names |= {
        "NVIDIA H200": (150, "h200"),
        "NVIDIA GeForce RTX 4090": (25, "rtx4090"),
        "Tesla V100-SXM2-16GB": (17, "v100"),
    }
    assert {name: key_for(name, memory) for name, (memory, _) in names.items()} == {
        name: key for name, (_, key) in names.items()
    }
