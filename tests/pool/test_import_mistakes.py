"""Inputs that `dfkd-fast pool import` refuses: one line that names the file, and no pool."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd_fast.cli.main import main


def damaged_tar(folder: Path) -> Path:
    (folder / "bad.tar").write_bytes(b"no tar")
    return folder / "bad.tar"


def mixed_sizes(folder: Path) -> Path:
    (folder / "mixed").mkdir()
    for size in (4, 5):
        Image.new("RGB", (size, size)).save(folder / "mixed" / f"{size}.png")
    return folder / "mixed"


def broken_picture(folder: Path) -> Path:
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"\x89PNG no more")
    return folder / "broken"


def wrong_array(folder: Path) -> Path:
    np.savez(folder / "float.npz", images=np.zeros((3, 4, 4, 3)))
    return folder / "float.npz"


def no_pictures(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def arrays(**contents: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "arrays.npz", images=np.zeros((5, 4, 4, 3), "uint8"), **contents)
        return folder / "arrays.npz"

    return write


def cut_archive(folder: Path) -> Path:
    file = arrays()(folder)
    file.write_bytes(file.read_bytes()[:200])
    return file


def tar_of(folder: Path, label: bytes) -> Path:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(2):
            for ending, content in ((".png", picture.getvalue()), (".cls", label)):
                member = tarfile.TarInfo(f"{number}{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "a.tar"


def cut_tar(folder: Path) -> Path:
    """Behind a whole sample: what tarfile takes for the end."""
    file = tar_of(folder, b"3")
    file.write_bytes(file.read_bytes()[: 4 * tarfile.BLOCKSIZE])
    return file


def sixteen_bits(folder: Path) -> Path:
    Image.new("I;16", (4, 4)).save(folder / "deep.png")
    return folder


def grey_and_colour(folder: Path) -> Path:
    for mode in ("L", "RGB"):
        Image.new(mode, (4, 4)).save(folder / f"{mode}.png")
    return folder


MISTAKES = {
    cut_archive: "arrays.npz: cannot be read",
    arrays(labels=np.zeros(3, "int64")): "`labels` is [3], for 5 images; expected one for each",
    arrays(labels=np.zeros((5, 2), "int64")): "`labels` is [5, 2], for 5 images",
    arrays(labels=np.zeros(5)): "`labels` must be whole numbers, not torch.float64",
    arrays(names=np.array(["a"] * 5)): "arrays.npz: cannot be read",
    cut_tar: "a.tar: damaged (it ends early)",
    lambda folder: tar_of(folder, b"cat"): "a.tar: class b'cat' is not a number",
    sixteen_bits: "deep.png: cannot be decoded (mode I;16: more than 8 bits a channel)",
    grey_and_colour: "some are grey: save them all in colour",
    damaged_tar: "bad.tar: damaged (file could not be opened successfully)",
    mixed_sizes: "images of 4x4x3 and 5x5x3; --image-size scales them alike",
    broken_picture: "a.png: cannot be decoded (it is no image)",
    wrong_array: "`images` must be uint8 (N, H, W, C), not torch.float64",
    no_pictures: "holds no images",
    lambda folder: folder / "nothing": "no such folder or file",
    lambda folder: Path(__file__): "expected a folder, .tar, .npz or .safetensors",
}


@pytest.mark.parametrize(("source", "words"), MISTAKES.items(), ids=MISTAKES.values())
def test_what_cannot_be_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: object, words: str
) -> None:
    assert main(["pool", "import", str(source(tmp_path)), str(tmp_path / "pool")]) == 2  # type: ignore[operator]
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "pool" / "manifest.json").exists()


@pytest.mark.parametrize(("name", "why"), {"file": "File exists", "file/below": "Not a directory"}.items())
def test_a_file_where_the_pool_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    (tmp_path / "file").write_text("mine")
    source = tar_of(tmp_path, b"3")
    assert main(["pool", "import", str(source), str(tmp_path / name)]) == 2
    assert f"{name}: cannot be written ({why}); choose a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
