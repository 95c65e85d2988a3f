"""`pool import` of WebDataset shards, folders and arrays: all of it, or one line and nothing."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd_fast.errors import UserError
from dfkd_fast.files import pictures
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.exchange.imports import import_pool


def png(level: int, size: int = 4, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size), (level,) * len(mode) if len(mode) > 1 else level).save(file, "png")
    return file.getvalue()


def shard(path: Path, members: Iterable[tuple[str, Any]], mode: Any = "w") -> Path:
    """A tar; bytes are files, text is what a hard link leads to."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname, content = tarfile.LNKTYPE, content, b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def taken(source: Path, **options: Any) -> tuple[list[int], list[int]]:
    """First pixel and label of each image."""
    out = source.with_name(f"{source.name}.pool")
    shutil.rmtree(out, ignore_errors=True)
    count = import_pool(source, out, **options)
    blocks = [(b["images"][:, 0, 0, 0].tolist(), b["labels"].tolist()) for _, b in PoolFiles(out).read(0, count)]
    return [level for levels, _ in blocks for level in levels], [label for _, labels in blocks for label in labels]


def refusal(source: Path, **options: Any) -> str:
    out = source.with_name(f"{source.name}.refused")
    with pytest.raises(UserError) as caught:
        import_pool(source, out, **options)
    message = str(caught.value)
    assert message.startswith("import ")
    assert "\n" not in message
    message.encode()
    assert not out.exists()  # nothing half-written
    return message


def pairs(names: Iterable[str]) -> list[tuple[str, bytes]]:
    return [m for i, name in enumerate(names) for m in ((f"{name}.png", png(i)), (f"{name}.cls", str(9 - i).encode()))]


WHOLE = [0, 1, 2], [9, 8, 7]
NAMES = {
    "plain": ["000", "001", "002"],
    "below a point": ["./000", "./001", "./002"],
    "in folders with dots": ["./set.v1/000", "./set.v1/001", "set.v2/000"],
    "in any order": ["c", "a", "b"],
    "not ASCII": ["\u00e9", "\u65e5", "\U0001f41c"],
}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_samples_are_named_as_webdataset_names_them(tmp_path: Path, names: list[str], mode: str) -> None:
    source = shard(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), pairs(names), mode)
    assert taken(source) == WHOLE


def test_endings_case_order_and_what_belongs_to_no_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [
        ("README", b"no sample"),
        ("._0.png", b"AppleDouble"),
        ("0.CLS", b" 9\n"),
        ("0.json", b"{}"),
        ("0.PNG", png(0)),
        ("1.logits.npy", b"..."),
        ("1.PnG", png(1)),
        ("1.cls", b"8"),
        ("2.cls", b"7"),
        ("2.png", png(2)),
    ]
    assert taken(shard(tmp_path / "a.tar", members)) == WHOLE
    assert "passed over 2 files that belong to no sample" in capsys.readouterr().out


def test_hard_links_in_shards(tmp_path: Path) -> None:
    members = [
        ("0.png", png(5)),
        ("0.cls", b"1"),
        ("1.png", "0.png"),
        ("1.cls", b"2"),
        ("2.png", png(6)),
        ("2.cls", "0.cls"),
    ]
    assert taken(shard(tmp_path / "a.tar", members)) == ([5, 5, 6], [1, 2, 1])


def test_many_samples_over_several_shards(tmp_path: Path) -> None:
    (tmp_path / "shards" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.tar", "b.tar", "more/c.tar")):
        members = [m for i in range(200) for m in ((f"{i:03}.png", png(i)), (f"{i:03}.cls", str(number).encode()))]
        shard(tmp_path / "shards" / name, members)
    found = taken(tmp_path / "shards")
    assert found == (list(range(200)) * 3, [0] * 200 + [1] * 200 + [2] * 200)


def test_shards_without_labels_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shard(tmp_path / "a.tar", [("0.png", png(0)), ("0.txt", b"a cat"), ("1.png", png(1))])
    assert taken(source) == ([0, 1], [-1, -1])
    assert "no .cls beside any picture; the images have no labels (-1)" in capsys.readouterr().out


REFUSED: dict[str, list[tuple[str, Any]]] = {
    "sample 22 has 2 pictures (.0.png, .1.png); names end at their first dot": pairs(["22.0", "22.1"]),
    "sample 0 has 2 pictures (.png, .jpg)": [("0.png", png(0)), ("0.jpg", png(0))],
    "sample 0 has two files .png": [("0.png", png(0)), ("0.png", png(1))],
    "sample 0 has two files .cls": [("0.png", png(0)), ("0.cls", b"1"), ("0.CLS", b"1")],
    "sample 0 has 2 labels (.cls, .b.cls)": [("0.png", png(0)), ("0.cls", b"1"), ("0.b.cls", b"1")],
    "the files of sample 0 lie apart; sort the tar by name": [("0.png", png(0)), ("1.png", png(1)), ("0.cls", b"1")],
    "1.png has no .cls, others have; label all or none": [*pairs(["0"]), ("1.png", png(1))],
    "0.png has no .cls, others have": [("0.png", png(1)), *pairs(["1"])],
    "sample 1 has no picture, only .cls": [*pairs(["0"]), ("1.cls", b"1")],
    "sample 1 has no picture, only .gif, .cls": [*pairs(["0"]), ("1.gif", b"GIF89a"), ("1.cls", b"1")],
    "class b'1.5' is not a number": [("0.png", png(0)), ("0.cls", b"1.5")],
    "class b'-2' is not a number": [("0.png", png(0)), ("0.cls", b"-2")],
    "class b'9999999999' is not a number": [("0.png", png(0)), ("0.cls", b"9" * 10)],
    "class b'' is not a number": [("0.png", png(0)), ("0.cls", b"")],
    "1.png is a link to gone.png, not in the tar": [("0.png", png(0)), ("1.png", "gone.png")],
    "1.png is a link that leads round in a circle": [("0.png", png(0)), ("1.png", "1.png")],
    "1.png: cannot be decoded (a Git-LFS pointer": [
        ("0.png", png(0)),
        ("1.png", b"version https://git-lfs.github.com"),
    ],
    "1.png: cannot be decoded (it is no image)": [("0.png", png(0)), ("1.png", b"%!PS-Adobe-3.0 EPSF-3.0\n")],
    "images of 4x4x3 and 5x5x3": [("0.png", png(0)), ("1.png", png(0, 5))],
    "holds no images": [("README", b"x")],
}


@pytest.mark.parametrize(("words", "members"), REFUSED.items(), ids=REFUSED)
def test_shards_are_taken_whole_or_not_at_all(tmp_path: Path, words: str, members: list[tuple[str, Any]]) -> None:
    assert words in refusal(shard(tmp_path / "a.tar", members))


def test_a_mistake_behind_many_samples_leaves_nothing(tmp_path: Path) -> None:
    members = [m for i in range(600) for m in pairs([f"{i:04}"])]
    assert "no image" in refusal(shard(tmp_path / "a.tar", [*members, ("9999.png", b"x"), ("9999.cls", b"1")]))
    (tmp_path / "a.tar.pool").mkdir()
    (tmp_path / "a.tar.pool" / "mine.txt").write_text("mine")
    with pytest.raises(UserError):
        import_pool(tmp_path / "a.tar", tmp_path / "a.tar.pool")
    assert [file.name for file in (tmp_path / "a.tar.pool").iterdir()] == ["mine.txt"]


def test_two_tars_in_one_file(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", pairs(["0"]))
    file.write_bytes(file.read_bytes() * 2)
    assert "damaged (more follows behind its end" in refusal(file)


def test_folders_and_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "source"
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "store" / name).mkdir(parents=True)
        (tmp_path / "store" / name / "0.png").write_bytes(png(label))
    shutil.copytree(tmp_path / "store" / "ant", root / "ant")
    (root / "bee").symlink_to(tmp_path / "store" / "bee")
    (root / "ant" / "._0.png").write_bytes(b"AppleDouble")
    (root / "ant" / "b.heic").write_bytes(b"?")
    assert taken(root) == ([0, 1], [0, 1])
    said = capsys.readouterr().out
    assert "passed over 1 .heic files, 1 AppleDouble files (._*)" in said
    assert "labels 0 to 1 are the folders in their order, ant, bee" in said
    (root / "stray.png").write_bytes(png(0))
    assert "stray.png lies in no class folder, others do" in refusal(root)
    (root / "stray.png").unlink()
    shard(root / "a.tar", pairs(["0"]))
    assert "holds 1 tars and 2 pictures; import them one by one" in refusal(root)
    (root / "a.tar").unlink()
    (root / "cow").mkdir()
    assert "no pictures in the folder cow, which would shift labels" in refusal(root)


@pytest.mark.parametrize(
    ("folders", "words"),
    {
        ("train/ant", "test/ant"): "holds splits (test, train), no classes; import one of them",
        ("1", "01"): "are no distinct class numbers",
        ("1", "99999999999"): "are no distinct class numbers",
        ("caf\u00e9", "cafe\u0301"): "two folders are called caf\u00e9, in different code points",
    }.items(),
)
def test_folders_that_name_no_classes(tmp_path: Path, folders: tuple[str, ...], words: str) -> None:
    for name in folders:
        (tmp_path / "a" / name).mkdir(parents=True)
        (tmp_path / "a" / name / "0.png").write_bytes(png(0))
    assert words in refusal(tmp_path / "a")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png(0, 11))
    assert "0.png: cannot be decoded (11 x 11 pixels; at most 100 are read)" in refusal(tmp_path / "a")


def write(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays(tmp_path: Path, suffix: str) -> None:
    images = np.arange(600, dtype=np.uint32).astype(np.uint8).reshape(600, 1, 1, 1).repeat(16, 1).reshape(600, 4, 4)
    for shown in (images, images[..., None], images[..., None].repeat(3, -1)):
        for labels in (np.arange(600), np.arange(600)[:, None].astype(np.uint16)):
            assert taken(write(tmp_path / f"a{suffix}", images=shown, labels=labels)) == (
                images[:, 0, 0].tolist(),
                list(range(600)),
            )


GOOD = np.zeros((5, 4, 4, 3), "u1")
ARRAYS: dict[str, dict[str, Any]] = {
    "`images` is [4, 3, 32, 32]; expected (N, H, W, C) or (N, H, W); (N, C, H, W) must be transposed": {
        "images": np.zeros((4, 3, 32, 32), "u1")
    },
    "`images` is [4, 1, 28, 28]": {"images": np.zeros((4, 1, 28, 28), "u1")},
    "`images` is [4, 4, 8, 8]; expected (N, H, W, C) or (N, H, W); (N, C, H, W) must be transposed": {
        "images": np.zeros((4, 4, 8, 8), "u1")
    },
    "`images` is [4, 0, 8, 3]": {"images": np.zeros((4, 0, 8, 3), "u1")},
    "`images` is [4]": {"images": np.zeros(4, "u1")},
    "no array `images`; it holds labels, pixels": {"pixels": GOOD, "labels": np.zeros(5, int)},
    "`images` must be uint8 (N, H, W, C), not torch.int16": {"images": GOOD.astype("i2")},
    "`labels` must be whole numbers, not torch.bool": {"images": GOOD, "labels": np.zeros(5, bool)},
    "`labels` from -2 to 0": {"images": GOOD, "labels": np.array([0, 0, -2, 0, 0])},
    "`labels` from 0 to 4294967296": {"images": GOOD, "labels": np.array([0, 0, 2**32, 0, 0])},
    "`labels` from -1 to 0": {"images": GOOD, "labels": np.array([0, 0, 2**64 - 1, 0, 0], dtype=np.uint64)},
    "`soft` is uint16; expected uint8,": {"images": GOOD, "soft": np.zeros((5, 2), np.uint16)},
    "`soft` is [1], for 5 images": {"images": GOOD, "soft": np.zeros(1)},
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(("words", "arrays"), ARRAYS.items(), ids=ARRAYS)
def test_arrays_that_are_no_pool(tmp_path: Path, words: str, arrays: dict[str, Any], suffix: str) -> None:
    assert words in refusal(write(tmp_path / f"a{suffix}", **arrays))


def test_a_safetensors_file_that_lies(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for shape, end in (([10**9, 4, 4, 3], 240), ([5, 4, 4, 3], 10**15), ([5, 4, 4, 3], -1)):
        header = json.dumps({"images": {"dtype": "U8", "shape": shape, "data_offsets": [0, end]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(240))
        assert "cannot be read" in refusal(file)
    for content in (b"", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        assert "cannot be read" in refusal(file)


def deep_png() -> bytes:
    """4 x 4 pixels of 16 bits in colour, which Pillow shows as RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress((b"\0" + bytes(4 * 6)) * 4)
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_colours_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    assert Image.open(io.BytesIO(deep_png())).mode == "RGB"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "0.png").write_bytes(deep_png())
    assert "0.png: cannot be decoded (mode RGB: more than 8 bits a channel)" in refusal(tmp_path / "deep")
