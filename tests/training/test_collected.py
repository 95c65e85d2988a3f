"""Collected images: their share is taken before decoding; above a size they stay in a file, bit for bit the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dfkd_fast.config.sources import default_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.messages.notes import note
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training.assemble import load_method
from dfkd_fast.training.real_images import collected_file
from dfkd_fast.training.real_images.collected import Collected, load_collected, rank_part

INFO = ModelInfo(name="cnn", num_classes=3, image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
TINY = 1e-9  # GiB: everything is kept in a file
Load = Callable[..., Collected]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """24 pictures of three classes, in two splits; `train/a` has 12 of them."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name, count in (("a", 12), ("b", 8), ("c", 4)):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for number in range(count if split == "train" else 1):
                pixels = torch.randint(256, (20, 24, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.png")
    return tmp_path / "tree"


@pytest.fixture
def load(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    note.cache_clear()

    def load(info: ModelInfo = INFO, **settings: Any) -> Collected:
        config = replace(default_config("hidfd"), **({"collected": str(tree)} | settings))
        found = load_collected(config, load_method("hidfd"), info)
        assert found is not None
        return found

    return load


def pixels(found: Collected) -> Tensor:
    return torch.cat([*found.images.chunks(5 * 16 * 16 * 3)]) if isinstance(found.images, ImageRows) else found.images


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_in_a_file_they_are_the_same(load: Load, capsys: pytest.CaptureFixture[str], share: float) -> None:
    memory, file = load(collected_share=share), load(collected_share=share, collected_memory=TINY)
    assert isinstance(memory.images, Tensor)
    assert isinstance(file.images, ImageRows)
    assert torch.equal(pixels(memory), pixels(file))
    assert torch.equal(memory.labels, file.labels)
    assert (memory.digest, memory.name, tuple(memory.images.shape)) == (file.digest, file.name, file.images.shape)
    said = capsys.readouterr().out
    assert f"--collected: {len(file)} images, 0.00 GB, are in {file.images.path} (above --collected-memory " in said


def test_other_files_are_not_decoded(load: Load, tree: Path) -> None:
    """With all but the chosen ones damaged nothing changes; without a share one of them is named."""
    whole, some = load(), load(collected_share=0.25)
    assert torch.bincount(some.labels).tolist() == [3, 2, 1]
    chosen = {image.numpy().tobytes() for image in pixels(some)}
    files = sorted((tree / "train").rglob("*.png"))
    for file, image in zip(files, pixels(whole), strict=True):
        if image.numpy().tobytes() not in chosen:
            file.write_bytes(b"no picture")
    assert torch.equal(pixels(load(collected_share=0.25)), pixels(some))
    with pytest.raises(UserError, match=r"cannot be decoded"):
        load()


@pytest.mark.parametrize("memory", [1.0, TINY])
def test_how_classes_were_read_is_said(
    load: Load, tree: Path, capsys: pytest.CaptureFixture[str], memory: float
) -> None:
    load(replace(INFO, class_names=("c", "a", "b")), collected_memory=memory)
    assert "--collected tree: classes in the order of the network's: c, a, b" in capsys.readouterr().out
    load(replace(INFO, class_names=("x", "y", "z")), collected_memory=memory)
    assert "--collected tree: classes a, b, c are taken in this order" in capsys.readouterr().out
    for split in ("train", "test"):
        for number in range(12):
            shutil.copytree(tree / split / "c", tree / split / str(number))
        for name in "abc":
            shutil.rmtree(tree / split / name)
    load(replace(INFO, num_classes=12), collected_memory=memory)
    assert "--class-order natural" in capsys.readouterr().out


def test_the_share_is_of_the_classes_in_the_teachers_order(load: Load) -> None:
    """Which images are taken of a class goes by its place there, in memory as in a file."""
    info = replace(INFO, class_names=("c", "a", "b"))
    found, file = (load(info, collected_share=0.5, collected_memory=memory) for memory in (1.0, TINY))
    assert torch.bincount(found.labels).tolist() == [2, 6, 4]
    assert torch.equal(pixels(found), pixels(file))
    assert torch.equal(found.labels, file.labels)
    with pytest.raises(UserError, match=r"^--collected tree: 3 classes, but cnn knows 4$"):
        load(replace(INFO, num_classes=4))


def test_the_file_is_found_again_and_a_damaged_one_made_anew(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load(collected_memory=TINY)
    path, made = first.images.path, []
    decoded = collected_file.decoded
    monkeypatch.setattr(collected_file, "decoded", lambda *args, **kwargs: made.append(1) or decoded(*args, **kwargs))
    assert load(collected_memory=TINY).images.path == path
    assert not made
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    assert load(collected_memory=TINY).digest == first.digest
    assert made == [1]
    assert f"collected images {path}: damaged; they are decoded anew" in capsys.readouterr().out
    assert load(collected_share=0.5, collected_memory=TINY).images.path != path


def test_a_stopped_decoding_leaves_nothing(load: Load, tree: Path, tmp_path: Path) -> None:
    (tree / "train" / "b" / "03.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"03\.png cannot be decoded"):
        load(collected_memory=TINY)
    assert {file.suffix for file in (tmp_path / "cache" / "collected").iterdir()} == {".lock"}


def test_no_room_is_said_before_anything_is_decoded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 17

    monkeypatch.setattr(collected_file.shutil, "disk_usage", lambda _folder: Full)
    monkeypatch.delattr(collected_file, "decoded")
    match = r"^--collected .*: 0\.00 GB of decoded images: .* has 0\.00 GB free; name another folder by DFKD_FAST_CACHE"
    with pytest.raises(UserError, match=match):
        load(collected_memory=TINY)


def test_each_rank_has_its_own_rows(load: Load) -> None:
    memory, file = load(), load(collected_memory=TINY)
    seen = []
    for rank in range(2):
        runtime = replace(make_runtime(device="cpu", precision="fp32"), rank=rank, world_size=2)
        ours, theirs = (rank_part(found, INFO, runtime) for found in (memory, file))
        assert torch.equal(ours.pixels, torch.cat([*theirs.pixels.chunks()]))
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.pixels[[4, 1]], theirs.pixels.read([4, 1]))
        seen.append(ours.pixels)
    assert torch.equal(torch.stack(seen, 1).flatten(0, 1), memory.images)


def test_a_file_that_ends_early_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(40))
    assert ImageRows(path, (3, 2, 2, 4)).read([1]).shape == (1, 2, 2, 4)
    with pytest.raises(UserError, match=r"ends before row 2; delete it, and it is made anew$"):
        ImageRows(path, (3, 2, 2, 4)).read([0, 2])


_PEAK = """
import json, sys
from dataclasses import replace
from dfkd_fast.config.sources import default_config
from dfkd_fast.training.real_images.collected import load_collected
from dfkd_fast.training.assemble import load_method
from dfkd_fast.models.factory import ModelInfo
info = ModelInfo(name="cnn", num_classes=2, image_size=256, mean=(0.5,) * 3, std=(0.5,) * 3)
config, method = default_config("hidfd"), load_method("hidfd")
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
def load(place, memory):
    return load_collected(replace(config, collected=f"{sys.argv[1]}/{place}", collected_memory=memory), method, info)
load("warm", 4.0)  # Pillow, threads
found = []
for memory in (0.03, 4.0):
    open("/proc/self/clear_refs", "w").write("5")  # the peak is now
    before = status("VmRSS")
    images = load("tree", memory).images
    for first in range(0, len(images), 20) if memory < 1 else ():
        images.read(range(first, min(first + 20, len(images))))
    found.append(status("VmHWM") - before)
print(json.dumps(found))
"""


def test_peak_memory_is_bounded(tmp_path: Path) -> None:
    """94 MiB of decoded images within 40 MiB, decoding and batches of 20 included; in memory they take all of it."""
    for place, count in (("warm", 4), ("tree", 500)):
        for number in range(count):
            folder = tmp_path / place / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (256, 256), (number % 256, number // 256, 9)).save(folder / f"{number}.jpg", quality=30)
    command = [sys.executable, "-c", _PEAK, str(tmp_path)]
    environment = {"DFKD_FAST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    in_file, in_memory = json.loads(done.stdout.splitlines()[-1])
    assert in_file < 40, done.stdout
    assert in_memory > 90, done.stdout
