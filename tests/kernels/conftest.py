"""Where there is no GPU, Triton's interpreter runs the kernels; it must be asked for before they are loaded."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


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
