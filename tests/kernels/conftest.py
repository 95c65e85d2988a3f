"""Fixtures of all kernel tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """The same weights in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty gives NaN (integers: the largest value), so that an output element nobody writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
