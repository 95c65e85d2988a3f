"""From a uint8 pool to a normalised batch, against the best plain torch that we know and its compiled form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from report import Goal, Row
from torch import Tensor

from dfkd_kernels import gather_augment

BATCH, PAD = 256, 4
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGES = {32: 50_000, 112: 5_000}


class Pool:
    """Random images and one batch's draws."""

    def __init__(self, size: int, device: torch.device) -> None:
        images = IMAGES[size]
        self.pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, device=device)
        self.indices = torch.randint(0, images, (BATCH,), device=device)
        self.shifts = torch.randint(-PAD, PAD + 1, (BATCH, 2), device=device)
        self.flips = torch.rand(BATCH, device=device) < 0.5
        self.scale = 1 / (255 * torch.tensor(STD, device=device))
        self.offset = -torch.tensor(MEAN, device=device) / torch.tensor(STD, device=device)
        self.place = torch.arange(size, device=device)

    def normalised(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W), channels-last."""
        return (pixels * self.scale + self.offset).to(dtype).permute(0, 3, 1, 2)


def by_index(pool: Pool, dtype: torch.dtype) -> Tensor:
    """One advanced index, clamped to the image, and a mask for what lies outside."""
    size = len(pool.place)
    rows = pool.place + pool.shifts[:, :1]
    columns = torch.where(pool.flips[:, None], size - 1 - pool.place, pool.place) + pool.shifts[:, 1:]
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    rows, columns = rows.clamp(0, size - 1), columns.clamp(0, size - 1)
    pixels = pool.pixels[pool.indices[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pool.normalised(pixels * inside[..., None], dtype)


def by_copy(pool: Pool, dtype: torch.dtype) -> Tensor:
    """Gather, pad, then one window copy per image: few large memory moves, but it reads the draws on the host."""
    size = len(pool.place)
    padded = F.pad(pool.pixels.index_select(0, pool.indices), (0, 0, PAD, PAD, PAD, PAD))
    window = torch.empty((BATCH, size, size, 3), dtype=torch.uint8, device=padded.device)
    for i, ((dy, dx), flip) in enumerate(zip((pool.shifts + PAD).tolist(), pool.flips.tolist(), strict=True)):
        crop = padded[i, dy : dy + size, dx : dx + size]
        window[i] = crop.flip(1) if flip else crop
    return pool.normalised(window, dtype)


def by_row(pool: Pool, dtype: torch.dtype) -> Tensor:
    """Whole rows of the padded images, then columns by a gather along the row."""
    size = len(pool.place)
    padded = F.pad(pool.pixels.index_select(0, pool.indices), (0, 0, PAD, PAD, PAD, PAD))
    rows = pool.place + pool.shifts[:, :1] + PAD
    columns = torch.where(pool.flips[:, None], size - 1 - pool.place, pool.place) + pool.shifts[:, 1:] + PAD
    image = torch.arange(BATCH, device=rows.device)[:, None]
    window = padded[image, rows]  # (B, H, W + 2 pad, C)
    window = window.gather(2, columns[:, None, :, None].expand(BATCH, size, size, 3))
    return pool.normalised(window, dtype)


PLAIN: dict[str, Callable[[Pool, torch.dtype], Tensor]] = {"by index": by_index, "by copy": by_copy, "by row": by_row}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", IMAGES)
def bench_batch(size, dtype, compare, device):
    pool = Pool(size, device)

    def ours() -> Tensor:
        draws = (pool.pixels, pool.indices, pool.shifts, pool.flips)
        return gather_augment(*draws, MEAN, STD, pad=PAD, dtype=dtype)

    variants = {name: lambda form=form: form(pool, dtype) for name, form in PLAIN.items()}
    for name, form in PLAIN.items():  # the baselines must do the same work
        torch.testing.assert_close(form(pool, dtype), ours(), rtol=1e-2, atol=1e-2, msg=name)
    compiled = torch.compile(by_index, fullgraph=True, dynamic=False)
    variants |= {"compiled": lambda: compiled(pool, dtype), "ours": ours}
    row = compare(f"gather_augment {size} px", variants, shape=(BATCH, 3, size, size), dtype=dtype)
    best = min(PLAIN, key=row.medians.__getitem__)
    row.numbers = {"images per second": BATCH / row.medians["ours"]}
    if device.type == "cpu":
        row.goals = (
            Goal(numerator=best, denominator="ours", bound=4.0),
            Goal(numerator="compiled", denominator="ours", bound=2.5),
        )


@pytest.mark.parametrize("size", IMAGES)
def bench_pinned_pool(size, compare, device, on_gpu):
    """A pool in pinned host memory: read in place, against gathered on the host, copied and augmented on the GPU."""
    on_gpu(Row(name="gather_augment, pinned pool", shape=(BATCH, 3, size, size), dtype="bfloat16"))
    pool = Pool(size, device)
    resident = pool.pixels
    host, indices = resident.cpu().pin_memory(), pool.indices
    host_indices, everything = indices.cpu(), torch.arange(BATCH, device=device)

    def ours(pixels: Tensor, chosen: Tensor) -> Tensor:
        return gather_augment(pixels, chosen, pool.shifts, pool.flips, MEAN, STD, pad=PAD, dtype=torch.bfloat16)

    variants = {
        "gather on the host, copy": lambda: ours(host.index_select(0, host_indices).to(device), everything),
        "ours": lambda: ours(host, indices),
        "ours, pool on the GPU": lambda: ours(resident, indices),
    }
    compare("gather_augment, pinned pool", variants, shape=(BATCH, 3, size, size), dtype=torch.bfloat16)
