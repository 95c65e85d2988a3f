"""bn_stat_loss over the ranks of a process group sees the global batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from bn_layer import hooks_loss

RANK = """
import sys, torch, torch.distributed as dist
from dfkd_kernels import batch_moments, bn_stat_loss
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
data = torch.load(f"{folder}/data.pt")
reductions, all_reduce = [], dist.all_reduce
dist.all_reduce = lambda *args, **options: reductions.append(args) or all_reduce(*args, **options)
results = {}
for dtype in (torch.float64, torch.float32):
    for own_shift in (False, True):                    # each rank shifts by its own sample, or both by the target
        x = data["x"][:3] if rank == 0 else data["x"][3:]      # parts of unequal size
        x = x.to(dtype).requires_grad_()
        moments = batch_moments(x, None if own_shift else data["mean"])
        loss = bn_stat_loss([moments] * 2, [(data["mean"], data["var"])] * 2, group=dist.group.WORLD)
        loss.backward()
        results[dtype, own_shift] = loss.detach(), x.grad
torch.save((results, len(reductions)), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_group_sees_the_joined_batch(tmp_path):
    """Loss and gradients of all dtypes and shifts, each with one all_reduce for both layers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((8, 5, 3, 3), generator=generator, dtype=torch.float64)
    mean, var = torch.rand(5, generator=generator).double(), torch.rand(5, generator=generator).double()
    torch.save({"x": x, "mean": mean, "var": var}, tmp_path / "data.pt")
    ranks = [start_rank(rank, tmp_path) for rank in (0, 1)]
    for process in ranks:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    (first, reductions), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    x.requires_grad_()
    expected = hooks_loss([x, x], [(mean, var)] * 2)
    expected.backward()
    assert reductions == others == len(first) == 4
    for (dtype, own_shift), (loss, gradient) in first.items():
        other_loss, other_gradient = second[dtype, own_shift]
        assert loss.dtype == dtype
        assert torch.equal(loss, other_loss)
        torch.testing.assert_close(loss, expected.detach().to(dtype))
        torch.testing.assert_close(torch.cat([gradient, other_gradient]), x.grad.to(dtype))


def start_rank(rank: int, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", RANK, str(rank), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
