"""`pytest tests/pool/test_kill.py --kills 200`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=24, help="how often the writer of a pool is killed")
