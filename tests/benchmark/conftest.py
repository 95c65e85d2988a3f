"""`pytest tests/benchmark/test_steady.py --steady-steps 10000`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--steady-steps", type=int, default=600, help="steps of the run whose time must not grow")
