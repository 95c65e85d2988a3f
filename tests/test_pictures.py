"""Pictures are taken as a viewer shows them, by every decoder alike, or refused in one line."""

from __future__ import annotations

import ast
import contextlib
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_fast.data.arrays import with_channels
from dfkd_fast.data.splits import load_split, load_test_split
from dfkd_fast.data.stream import Decoding, ImageStream
from dfkd_fast.errors import UserError
from dfkd_fast.files import pictures
from dfkd_fast.files.pictures import Channels, PictureReader

SIDE = 24
ROOT = Path(__file__).parent.parent


def smooth(channels: int = 3) -> np.ndarray:
    """A picture whose every quarter differs, so that no two orientations agree."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    bands = [7 * rows + columns, 200 - 5 * rows, 3 * columns + 20, np.full_like(rows, 255)]
    return np.stack(bands[:channels], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def taken(content: bytes, channels: Channels | None = 3) -> np.ndarray:
    return np.asarray(PictureReader(channels).read(content, "it"))


def refusal(content: bytes | Path) -> str:
    with pytest.raises(UserError) as caught:
        PictureReader(3).read(content, "--data x: a.png")
    message = str(caught.value)
    assert message.startswith("--data x: a.png cannot be decoded (")
    assert "\n" not in message
    return message


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_size(side: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(9)))


def test_sixteen_bits_keep_their_upper_eight() -> None:
    levels = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    expected = (levels >> 8).astype(np.uint8)
    pgm = b"P5 24 24 65535\n" + levels.astype(">u2").tobytes()
    for content in (encoded(Image.fromarray(levels)), encoded(Image.fromarray(levels), "tiff"), pgm):
        assert np.array_equal(taken(content, 1), expected)
        assert np.array_equal(taken(content)[:, :, 1], expected)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_pixels_of_an_unknown_range_are_refused(dtype: str) -> None:
    wide = Image.fromarray(smooth()[:, :, 0].astype(dtype))
    assert "pixels of an unknown range; save them with 8 or 16 bits" in refusal(encoded(wide, "tiff"))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "RGB with a clear colour", "16 bits with a clear level"])
def test_what_is_transparent_is_white_whatever_colour_it_hides(kind: str) -> None:
    noise = np.random.default_rng(0).integers(1, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    clear = np.zeros((SIDE, SIDE), bool)
    clear[:4] = True
    if kind == "RGBA":
        noise[..., 3] = np.where(clear, 0, 255)
        content, visible = encoded(Image.fromarray(noise, "RGBA")), noise[..., :3]
    elif kind == "LA":
        pair = np.stack([noise[..., 0], np.where(clear, 0, 255).astype(np.uint8)], -1)
        content, visible = encoded(Image.fromarray(pair, "LA")), noise[..., :1].repeat(3, -1)
    elif kind == "palette":
        image = Image.fromarray(np.where(clear, 0, noise[..., 0] % 3 + 1).astype(np.uint8), "P")
        image.putpalette([9, 9, 9, 10, 20, 30, 40, 50, 60, 70, 80, 90])
        content, visible = encoded(image, transparency=0), np.asarray(image.convert("RGB"))
    elif kind == "RGB with a clear colour":
        noise[clear] = 0
        content, visible = encoded(Image.fromarray(noise[..., :3]), transparency=(0, 0, 0)), noise[..., :3]
    else:
        deep = np.where(clear, 77, noise[..., 0].astype(np.uint16) * 256)
        file = encoded(Image.fromarray(deep.astype(np.uint16)))
        content = file[:33] + png_chunk(b"tRNS", struct.pack(">H", 77)) + file[33:]
        visible = noise[..., :1].repeat(3, -1)
    found = taken(content)
    assert (found[clear] == 255).all()
    assert np.array_equal(found[~clear], visible[~clear])


def test_half_transparent_is_half_white() -> None:
    assert taken(encoded(Image.new("RGBA", (1, 1), (100, 0, 255, 128))))[0, 0].tolist() == [177, 127, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_turned_as_viewers_turn(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    wide = Image.fromarray(smooth()[: SIDE // 2])
    options = {"quality": 100, "subsampling": 0} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}
    found = taken(encoded(wide, kind, exif=exif, **options)).astype(int)
    pixels = smooth()[: SIDE // 2].astype(int)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
    assert found.shape == turned.shape
    assert abs(found - turned).max() <= (4 if kind == "jpeg" else 0)


def test_damaged_exif_turns_nothing() -> None:
    pixels = taken(encoded(Image.fromarray(smooth()), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff nonsense"))
    assert np.array_equal(pixels, smooth())


def test_grey_and_colour_as_the_caller_asks() -> None:
    grey, colour = Image.fromarray(smooth()[:, :, 0]), Image.fromarray(smooth())
    assert taken(encoded(grey), 1).shape == taken(encoded(colour), 1).shape == (SIDE, SIDE)
    assert taken(encoded(grey), 3).shape == taken(encoded(colour), 3).shape == (SIDE, SIDE, 3)
    assert [taken(encoded(image), None).ndim for image in (grey, grey.convert("LA"), colour)] == [2, 2, 3]
    assert np.array_equal(taken(encoded(colour), 1), np.asarray(colour.convert("L")))


def test_channels_of_decoded_images() -> None:
    images = torch.randint(0, 256, (5, 7, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = with_channels(images, 1, "x")
    assert np.array_equal(grey[2, :, :, 0], np.asarray(Image.fromarray(images[2].numpy()).convert("L")))
    assert torch.equal(with_channels(grey, 3, "x"), grey.repeat(1, 1, 1, 3))
    assert with_channels(images, 3, "x") is images


@pytest.mark.parametrize("side", [9_000, 20_000, 2**31 - 1])
def test_bombs_are_refused_by_their_header(side: int, recwarn: pytest.WarningsRecorder) -> None:
    assert "cannot be decoded" in refusal(png_of_size(side))
    if side == 9_000:
        assert "9000 x 9000 pixels; at most 67,108,864 are read" in refusal(png_of_size(side))


def test_files_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**40)  # sparse: takes no room
    assert "1,099,511,627,776 bytes; at most 268,435,456 are read" in refusal(tmp_path / "a.png")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) show\n"
NO_PICTURES = {
    "PostScript": (POSTSCRIPT, "it is no image"),
    "PDF": (b"%PDF-1.4\n1 0 obj", "it is no image"),
    "text": (b"<html>not found</html>", "it is no image"),
    "empty": (b"", "it is empty"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git-LFS pointer"),
}


@pytest.mark.parametrize(("content", "words"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_is_called_what_it_is(content: bytes, words: str) -> None:
    assert words in refusal(content)


def test_no_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS file would start Ghostscript."""
    import subprocess

    def start(*arguments: object, **options: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(subprocess, "Popen", start)
    refusal(POSTSCRIPT)


@pytest.mark.parametrize("folder", ["dfkd_fast", "bench"])
def test_every_opened_picture_names_its_formats(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                assert "formats" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


def test_any_bytes_are_a_picture_or_one_line() -> None:
    """Cut and changed files of every format, and no other exception than a UserError."""
    draw = np.random.default_rng(0)
    kinds = {"png": {}, "jpeg": {}, "bmp": {}, "gif": {}, "ppm": {}, "tiff": {"compression": "tiff_lzw"}, "webp": {}}
    for kind, options in kinds.items():
        whole = encoded(Image.fromarray(smooth()), kind, **options)
        for _ in range(25):
            damaged = bytearray(whole)
            for position in draw.integers(0, len(whole), 4):
                damaged[position] = draw.integers(256)
            with contextlib.suppress(UserError):
                taken(bytes(damaged[: draw.integers(1, len(whole) + 1)]))


def mixed(root: Path) -> Path:
    """One picture of every treatment, in two classes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    colour, grey = Image.fromarray(smooth()), Image.fromarray(smooth()[:, :, 0])
    files = {
        "plain.png": encoded(colour),
        "plain.jpg": encoded(colour, "jpeg"),
        "grey.png": encoded(grey),
        "turned.jpg": encoded(colour, "jpeg", exif=exif),
        "deep.png": encoded(Image.fromarray(smooth()[:, :, 0].astype(np.uint16) * 257)),
        "clear.png": encoded(Image.fromarray(np.dstack([smooth(), smooth()[:, :, 0]]), "RGBA")),
        "palette.png": encoded(colour.quantize(256, dither=Image.Dither.NONE)),
        "bits.png": encoded(Image.new("1", (SIDE, SIDE), 1)),
        "a.bmp": encoded(colour, "bmp"),
        "a.webp": encoded(colour, "webp"),
        "a.tif": encoded(colour, "tiff"),
    }
    for label in ("n00000001", "n00000002"):  # of ImageNet, so that nobody computes statistics
        (root / label).mkdir(parents=True)
        for name, content in files.items():
            (root / label / name).write_bytes(content)
    return root


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("decoder", ["pil", "dali"])
def test_decoders_treat_pictures_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], decoder: Any, channels: Channels
) -> None:
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (pip install dfkd-fast[dali])")
    root = mixed(tmp_path / "tree")
    whole = load_split(root, "test", image_size=16, channels=channels)
    options: Any = {"decoding": Decoding(decoder=decoder, workers=1), "device": torch.device("cpu"), "in_memory": 0}
    stream = load_test_split(root, image_size=16, channels=channels, **options)
    assert isinstance(stream, ImageStream)
    capsys.readouterr()
    found = torch.cat([images for images, _ in stream.batches(4)])
    assert found.shape == whole.images.shape == (22, 16, 16, channels)
    assert (found.int() - whole.images.int()).abs().max() <= (decoder == "dali")
    said = capsys.readouterr().out
    assert said.count("not plain JPEG or PNG; Pillow decodes these") == (decoder == "dali")


def test_what_was_done_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mixed(tmp_path / "tree")
    for _ in range(2):
        load_split(root, "test", image_size=16)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"--data {root}: pictures 2 16-bit, of which the upper eight are kept; ")
    assert "2 transparent, laid over white; 2 turned as their EXIF orientation says" in line


def test_a_sixteen_bit_set_is_the_eight_bit_one(tmp_path: Path) -> None:
    """Bit for bit, so that a network answers the same: clipped to white, digits fell from 64.6 to 10.2 %."""
    digits = load_split("digits", "test", channels=1)
    for name, dtype, factor in (("8", np.uint8, 1), ("16", np.uint16, 257)):
        for index, label in enumerate(digits.labels[:40].tolist()):
            folder = tmp_path / name / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            grey = digits.images[index, :, :, 0].numpy().astype(dtype) * dtype(factor)
            (folder / f"{index}.png").write_bytes(encoded(Image.fromarray(grey)))
    assert load_split(tmp_path / "8", "test").digest == load_split(tmp_path / "16", "test").digest


def test_plain_sets_need_no_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(encoded(Image.fromarray(smooth())))
    load_split(tmp_path, "test")
    assert capsys.readouterr().out == ""


def test_the_limits_are_those_stated() -> None:
    assert (pictures.MAX_PIXELS, pictures.MAX_BYTES) == (67_108_864, 268_435_456)
