"""bn_stat_loss over the ranks of a process group sees the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bn_layer import hooks_loss

RANK = """
import sys, torch, torch.distributed as dist
from dfkd_kernels import batch_moments, bn_stat_loss
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
data = torch.load(f"{folder}/data.pt")
x = data["x"][:3] if rank == 0 else data["x"][3:]      # parts of unequal size
x.requires_grad_()
shift = None if data["own_shift"] else data["mean"]    # None: each rank shifts by its own sample
loss = bn_stat_loss([batch_moments(x, shift)] * 2, [(data["mean"], data["var"])] * 2, group=dist.group.WORLD)
loss.backward()
torch.save((loss.detach(), x.grad), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("own_shift", [False, True])
def test_group_sees_the_joined_batch(tmp_path, own_shift):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((8, 5, 3, 3), generator=generator, dtype=torch.float64)
    mean, var = torch.rand(5, generator=generator).double(), torch.rand(5, generator=generator).double()
    torch.save({"x": x, "mean": mean, "var": var, "own_shift": own_shift}, tmp_path / "data.pt")
    ranks = [start_rank(rank, tmp_path) for rank in (0, 1)]
    for process in ranks:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    (loss, first), (other_loss, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    x.requires_grad_()
    expected = hooks_loss([x, x], [(mean, var)] * 2)
    expected.backward()
    assert torch.equal(loss, other_loss)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(torch.cat([first, second]), x.grad)


def start_rank(rank: int, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", RANK, str(rank), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
