"""Methods that can be run with `--deterministic`: those whose steps call no operator that torch lacks a deterministic
form of on a GPU. The test needs no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_contract import ROOT, Assembled, every_method, teacher_file, tiny  # noqa: F401 - a fixture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_fast.catalog import FACTS
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.nayer import NayerConfig
from dfkd_fast.training.failures import explained

NOT_ON_A_GPU = {
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_ctc_loss_backward",
    "fractional_max_pool2d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "histc",
    "max_unpool2d",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "put_",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "_upsample_bicubic2d_aa_backward",
    "_upsample_bilinear2d_aa_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}
"""operators that `torch.use_deterministic_algorithms` lists as raising on a CUDA tensor, whatever they are given"""

CANNOT = {
    "cmi": "grid_sampler_2d_backward",
    "zskt": "grid_sampler_2d_backward",
    "dfq": "grid_sampler_2d_backward",
    "dfad": "grid_sampler_2d_backward",
    "msarc": "max_unpool2d",
    "spaceshipnet": "_adaptive_avg_pool2d_backward",
}
"""methods that `--deterministic` ends with one line, and the operator in it; docs/performance.md names them"""


class Strict(TorchDispatchMode):
    """Raises torch's error where a GPU would under `use_deterministic_algorithms`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        floats = any(isinstance(value, Tensor) and value.is_floating_point() for value in args)
        weighted = name == "bincount" and (len(args) > 1 and args[1] is not None)
        ranked = name in ("median", "nanmedian") and len(func._schema.returns) > 1
        if name in NOT_ON_A_GPU or (name in ("cumsum", "cumsum_") and floats) or weighted or ranked:
            raise RuntimeError(
                f"{name}_cuda does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
            )
        return func(*args, **(kwargs or {}))


@every_method
def test_whether_a_gpu_has_a_deterministic_form_of_every_operator(
    name: str,
    teacher_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Synthesis with and without the student, every step of a round; student steps."""
    run = Assembled(tiny(name, teacher_file, tmp_path / "run"), tmp_path / "pool")
    refused = pytest.raises(RuntimeError, match=rf"^{CANNOT[name]}_cuda does not") if name in CANNOT else nullcontext()
    try:
        run.round(0)
        with refused, Strict():
            steps_of(run)
    finally:
        run.pool.close()


def steps_of(run: Assembled) -> None:
    """The synthesis steps of a round in a later epoch, and two student steps."""
    run.made(2)
    run.student.train()
    for batch in list(run.trainer.inputs(2))[:2]:
        run.trainer.step(*batch)


def test_the_page_names_them() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    for name, operator in CANNOT.items():
        assert re.search(rf"^\| .*\b{FACTS[name].title}\b.* \| `{operator}` \|", page, flags=re.MULTILINE), name


PLANTED: dict[str, Callable[[Tensor], Tensor]] = {
    "upsample_bilinear2d_backward_cuda": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "_adaptive_avg_pool2d_backward_cuda": lambda x: F.adaptive_avg_pool2d(x, 3),
    "reflection_pad2d_backward_cuda": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "cumsum_cuda": lambda x: x.cumsum(0),
    "grid_sampler_2d_backward_cuda": lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False),
}


@pytest.mark.parametrize("name", PLANTED)
def test_one_that_has_none_is_named(name: str) -> None:
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    message = rf"^--deterministic: {name} has no form that gives the same bits in every run; choose --no-deterministic$"
    runtime = make_runtime(device="cpu")
    with pytest.raises(UserError, match=message), explained("synthesis", 0, NayerConfig(), runtime), Strict():
        PLANTED[name](x).sum().backward()
