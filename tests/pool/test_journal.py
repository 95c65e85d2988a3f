"""The journal: what has been flushed is there again, what a checkpoint did not record is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfkd_fast.pool.journal import Journal


def fields(first: int, count: int) -> dict[str, Tensor]:
    """Records whose content says their position."""
    positions = torch.arange(first, first + count)
    images = (positions[:, None, None, None] * 7 + torch.arange(48).view(4, 4, 3)).to(torch.uint8)
    return {"images": images, "labels": positions, "logits": positions[:, None] + torch.rand(count, 5)}


def test_what_was_flushed_is_read_back(tmp_path: Path) -> None:
    parts = [fields(0, 3), fields(3, 5), fields(8, 1)]
    journal = Journal(tmp_path / "pool")
    for part in parts:
        journal.append(part)
    assert journal.flush() == {"count": 9}
    journal.close()
    back = Journal(tmp_path / "pool").truncate(9)
    assert set(back) == {"images", "labels", "logits"}
    for name, values in back.items():
        assert torch.equal(values, torch.cat([part[name] for part in parts]))


def test_truncate_drops_what_came_later_and_appends_go_on_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "pool")
    journal.append(fields(0, 6))
    journal.close()
    again = Journal(tmp_path / "pool")
    assert len(again.truncate(4)["labels"]) == 4
    again.append(fields(20, 2))
    again.close()
    assert Journal(tmp_path / "pool").truncate(6)["labels"].tolist() == [0, 1, 2, 3, 20, 21]


def test_fewer_records_than_the_checkpoint_says(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "pool")
    journal.append(fields(0, 2))
    journal.close()
    with pytest.raises(ValueError, match="fewer than"):
        Journal(tmp_path / "pool").truncate(3)


def test_an_empty_pool_restores_from_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path / "pool").truncate(0) == {}


def test_a_batch_of_another_shape_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "pool")
    journal.append({"images": torch.zeros(1, 4, 4, 3, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="the pool holds"):
        journal.append({"images": torch.zeros(1, 5, 5, 3, dtype=torch.uint8)})
