"""`dfkd-fast pool`: out into other formats and in again, what it says, and its mistakes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dfkd_fast.cli.main import main
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.journal import Journal

COUNT = 300


def write_pool(
    folder: Path, *, channels: int = 3, extras: bool = False, labelled: bool = True
) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    fields = {
        "images": torch.randint(0, 256, (COUNT, 6, 6, channels), dtype=torch.uint8, generator=draw),
        "labels": torch.randint(0, 7, (COUNT,), generator=draw) if labelled else torch.full((COUNT,), -1),
    }
    if extras:
        fields["logits"] = torch.rand(COUNT, 7, generator=draw)
        fields["embedding"] = torch.rand(COUNT, 2, generator=draw).bfloat16()
    journal = Journal(folder, capacity=COUNT)
    journal.append(fields)
    journal.flush()
    journal.close()
    return fields


def read_pool(folder: Path) -> dict[str, torch.Tensor]:
    parts = [{name: values.clone() for name, values in block.items()} for _, block in PoolFiles(folder).read(0, 10**6)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def by_content(fields: dict[str, torch.Tensor]) -> list[tuple[int, bytes]]:
    """Labels and pixels in an order of their own: a folder does not keep the pool's."""
    return sorted(zip(fields["labels"].tolist(), (image.numpy().tobytes() for image in fields["images"]), strict=True))


@pytest.mark.parametrize("target", ["folder", "pool.npz", "pool.safetensors", "pool.tar"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [True, False])
def test_out_and_in_again(tmp_path: Path, target: str, channels: int, labelled: bool) -> None:
    fields = write_pool(tmp_path / "pool", channels=channels, labelled=labelled)
    assert main(["pool", "export", str(tmp_path), str(tmp_path / "out" / target)]) == 0
    source = tmp_path / "out" / ("pool-000000.tar" if target == "pool.tar" else target)
    assert main(["pool", "import", str(source), str(tmp_path / "again")]) == 0
    again = read_pool(tmp_path / "again")
    if target == "folder":
        assert by_content(again) == by_content(fields)
    else:
        assert all(torch.equal(again[name], fields[name]) for name in fields)


def test_extras_come_along(tmp_path: Path) -> None:
    fields = write_pool(tmp_path / "pool", extras=True)
    for name in ("a.npz", "a.safetensors", "a.tar"):
        assert main(["pool", "export", str(tmp_path), str(tmp_path / name), "--slice", "10:290"]) == 0
    tensors = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(tensors[name], values[10:290]) for name, values in fields.items())
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["logits"], fields["logits"][10:290])
        assert np.array_equal(arrays["embedding"], fields["embedding"][10:290].float())
    with tarfile.open(tmp_path / "a-000000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["00000010.png", "00000010.cls"]
        assert len(names) == 280 * 4
        member = tar.extractfile("00000010.logits.npy")
        assert member is not None
        assert np.array_equal(np.load(io.BytesIO(member.read())), fields["logits"][10])


def test_a_released_codes_png_pool_comes_in(tmp_path: Path) -> None:
    """A flat folder of numbered PNG files, no labels."""
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 9)).save(tmp_path / f"{number}-0.png")
    assert main(["pool", "import", str(tmp_path), str(tmp_path / "pool")]) == 0
    found = read_pool(tmp_path / "pool")
    assert found["labels"].tolist() == [-1] * 5
    assert found["images"][:, 3, 3].tolist() == [[number, 0, 9] for number in range(5)]


def test_class_folders_become_labels(tmp_path: Path) -> None:
    for name in ("cat", "ant"):
        (tmp_path / "source" / name).mkdir(parents=True)
        Image.new("L", (9, 6)).save(tmp_path / "source" / name / "x.png")
    assert main(["pool", "import", str(tmp_path / "source"), str(tmp_path / "pool"), "--image-size", "4"]) == 0
    found = read_pool(tmp_path / "pool")
    assert found["labels"].tolist() == [0, 1]
    assert found["images"].shape == (2, 4, 4, 1)


def test_a_contact_sheet(tmp_path: Path) -> None:
    fields = write_pool(tmp_path / "pool")
    assert main(["pool", "export", str(tmp_path), str(tmp_path / "sheet.png"), "--slice=-20:"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = torch.from_numpy(np.array(sheet))
    scale = 64 // 6
    first = pixels[2 : 2 + 6 * scale : scale, 2 : 2 + 6 * scale : scale]
    assert torch.equal(first, fields["images"][-20])
    second_row = pixels[4 + 6 * scale : 4 + 12 * scale : scale, 2 : 2 + 6 * scale : scale]
    assert torch.equal(second_row, fields["images"][-4])


@pytest.mark.parametrize("target", ["folder", "a.npz", "a.safetensors", "a.tar", "a.png"])
def test_an_export_is_there_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    write_pool(tmp_path / "pool")
    command = ["pool", "export", str(tmp_path), str(tmp_path / "out" / target)]
    segment = tmp_path / "pool" / "segment-000000.bin"
    content = segment.read_bytes()
    segment.write_bytes(content[: 280 * 108] + b"damaged" + content[280 * 108 + 7 :])
    assert main(command) == 2
    assert not any((tmp_path / "out").iterdir())
    segment.write_bytes(content)
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 2
    assert "is there already; choose another name" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_info_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pool(tmp_path / "pool", extras=True)
    assert main(["pool", "info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/pool: 300 images" in said
    assert "uint8 6x6x3" in said
    assert "classes     7, " in said
    assert main(["pool", "verify", str(tmp_path)]) == 0
    assert "300 images, all as they were written" in capsys.readouterr().out
    with open(tmp_path / "pool" / "segment-000000.bin", "r+b") as file:
        file.write(b"damage")
    assert main(["pool", "verify", str(tmp_path)]) == 1
    assert "segment-000000.bin: the checksum of its images does not fit (images 0 to 255)" in capsys.readouterr().out
    assert main(["pool", "verify", "--repair", str(tmp_path)]) == 0
    assert "dropped 1 blocks with 256 images, 44 images are whole" in capsys.readouterr().out
    assert main(["pool", "verify", str(tmp_path)]) == 0
    assert main(["pool", "info", str(tmp_path)]) == 0
    assert "dropped     1 blocks, by a repair" in capsys.readouterr().out


def test_the_pools_of_several_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(2):
        write_pool(tmp_path / "pool" / f"rank-{rank}-of-2")
    assert main(["pool", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("300 images, all as they were written") == 2
    assert main(["pool", "export", str(tmp_path), str(tmp_path / "a.npz")]) == 2
    assert "holds several pools; choose" in capsys.readouterr().err


COMMANDS = {
    "pool infoo x": "did you mean info?",
    "pool info": "expected DIR, not 0 paths",
    "pool info {}/nowhere": "no pool there",
    "pool export {}/pool": "expected DIR TARGET, not 1 paths",
    "pool export {}/pool {}/x.jpg": "ending .jpg: did you mean .png?",
    "pool export {}/pool {}/pool": "is there already",
    "pool export {}/pool {}/a.png --slice 5": "--slice 5: expected A:B",
    "pool export {}/pool {}/a.png --slice 9:9": "--slice 9:9: holds none of the pool's 300 images",
    "pool export {}/pool {}/a --slice 500:600": "--slice 500:600: holds none of the pool's 300 images",
    "pool export {}/pool {}/a.npz --slize 0:9": "--slize: unknown flag; did you mean --slice?",
    "pool import {}/pool {}/pool": "holds no images",
    "pool import {}/pool {}/again --image-size 0": "--image-size 0: choose 1 or more",
    "pool info {}/pool --all": "--all: unknown flag",
}


@pytest.mark.parametrize(("command", "words"), COMMANDS.items(), ids=COMMANDS.keys())
def test_mistakes_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    write_pool(tmp_path / "pool")
    assert main(command.format(*[tmp_path] * command.count("{}")).split()) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
