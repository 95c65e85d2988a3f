"""Inputs that somebody may hand to the command line, by kind and seed: mostly well formed, with a few things wrong.

`make(kind, seed, folder)` writes the input below `folder/in` and returns the command line that reads it. What such a
command may write goes to `folder/out`. Equal seeds give equal inputs.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import struct
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save

CLASSES = ("ant", "bee", "cat")
ODD_NAMES = (
    "\x1b[31mred",
    "a\nb",
    "..",
    "-x",
    "n" * 200,
    "caf\xe9",
    "caf\udce9",
    " ",
    "@eaDir",
    "._x",
    "CON",
    "a;b",
    "%s{0}",
)
ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, 10**18, 0.5, float("nan"), float("inf"), True, "x", "", None, [], [1, 2], {})
HEADER = "dfkd_fast"


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def make(kind: str, seed: int, folder: Path) -> list[str]:
    """Write an input and return its command line."""
    source = folder / "in"
    source.mkdir(parents=True)
    return KINDS[kind](random.Random(f"{kind}/{seed}"), source)


def damaged(rng: random.Random, content: bytes, head: int = 200) -> bytes:
    """Half of the time as it is, else cut, or with bytes changed, most of them near the start."""
    how = rng.choice(("whole", "whole", "whole", "cut", "bytes", "empty", "longer"))
    if how == "cut":
        return content[: rng.randrange(len(content) + 1)]
    if how == "empty":
        return rng.choice(
            (b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"\0" * 64)
        )
    if how == "longer":
        return content + rng.randbytes(rng.randrange(1, 64))
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 10)) if how == "bytes" and content else 0):
        changed[rng.randrange(min(head, len(changed)) if rng.random() < 0.7 else len(changed))] = rng.randrange(256)
    return bytes(changed)


def picture(rng: random.Random) -> tuple[str, bytes]:
    """An ending and the bytes of an image file, or of something that is called one."""
    mode = rng.choice(("RGB", "RGB", "RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F"))
    ending = {"CMYK": ".jpg", "F": ".tif"}.get(mode, rng.choice((".png", ".png", ".jpg", ".webp", ".bmp")))
    ending = ".png" if mode in ("RGBA", "P", "1", "I;16") else ending
    side = rng.choice(((16, 16), (16, 16), (16, 16), (1, 1), (40, 8), (1, 5000)))
    file = io.BytesIO()
    made = Image.new(mode, side) if mode in ("I;16", "F", "1") else Image.new(mode, side, rng.randrange(200))
    made.save(file, Image.registered_extensions()[ending])
    if rng.random() < 0.06:
        return ".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    if rng.random() < 0.04:
        return ".ppm", b"P6 99999 99999 255\n" + b"a" * 100
    return ending, damaged(rng, file.getvalue()) if rng.random() < 0.3 else file.getvalue()


def members(rng: random.Random) -> list[tuple[str, bytes]]:
    """Names and bytes of the files of a tree, most of them `<split>/<class>/<file>`."""
    found = []
    for split in rng.choice((("train", "test"), ("train", "test"), ("test",), ("val",), ("",))):
        for name in CLASSES:
            for index in range(rng.choice((1, 2, 2, 0)) if rng.random() < 0.3 else 2):
                ending, content = picture(rng) if rng.random() < 0.2 else (".png", png(rng))
                found.append(("/".join(filter(None, (split, name, f"{index}{ending}"))), content))
    for _ in range(rng.choice((0, 0, 1, 2))):
        odd = rng.choice(ODD_NAMES)
        found.append((f"test/{rng.choice((odd, 'ant/' + odd))}/{odd}.png", png(rng)))
    return found


def png(rng: random.Random, side: int = 16) -> bytes:
    """A good image."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (rng.randrange(256), rng.randrange(256), 9)).save(file, "png")
    return file.getvalue()


def folder(rng: random.Random, source: Path) -> list[str]:
    """A tree on disk, with links."""
    root = source / "data"
    for name, content in members(rng):
        file = root / name.replace("..", "dots")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for _ in range(rng.choice((0, 0, 1, 3))):
        link = rng.choice(list(root.rglob("*"))).parent / f"link{rng.randrange(9)}{rng.choice(('', '.png'))}"
        if not link.is_symlink():
            link.symlink_to(rng.choice(("nowhere", "..", ".", "/etc/passwd", "/dev/zero", "link1")))
    return reader(rng, root, source.parent)


def tar(rng: random.Random, source: Path) -> list[str]:
    """An archive of such a tree, with links, devices and names that lead out of it."""
    file = source / f"data.tar{rng.choice(('', '', '.gz', '.xz'))}"
    writing: Any = {".gz": "w:gz", ".xz": "w:xz"}.get(file.suffix, "w")
    with tarfile.open(file, writing, format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for name, content in members(rng):
            item = tarfile.TarInfo(rng.choice(("", "", "", "./", "/", "../../", f"{source}/")) + name)
            item.size = len(content)
            if rng.random() < 0.08:
                item.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"))
                item.linkname = rng.choice(("/etc/passwd", "test/ant/0.png", name, "../nowhere"))
                item.size = 0
            archive.addfile(item, io.BytesIO(content) if item.type == tarfile.REGTYPE else None)
    if rng.random() < 0.4:
        file.write_bytes(damaged(rng, file.read_bytes(), head=600))
    return reader(rng, file, source.parent)


def shard(rng: random.Random, source: Path) -> list[str]:
    """WebDataset shards: samples with parts missing, doubled, apart or of odd content."""
    for number in range(rng.choice((1, 1, 2))):
        with tarfile.open(source / f"{number:04d}.tar", "w") as archive:
            parts = []
            if rng.random() < 0.3:  # a shard is taken whole or not at all, so that some must be good
                picture = png(rng)
                parts = [
                    (f"{index}.{kind}", picture if kind == "png" else b"1") for index in "01" for kind in ("png", "cls")
                ]
            for index in () if parts else range(4):
                key = rng.choice(("", "", "./", "a/", "b.c/")) + rng.choice((f"{index:04d}", f"{index}.5", "x"))
                parts.append((f"{key}.{rng.choice(('png', 'png', 'jpg', 'PNG', 'npy'))}", damaged(rng, png(rng))))
                label = rng.choice((b"1", b"1", b"0", b"-7", b"nan", b"9" * 50, b"", b"cat", b"\xff"))
                parts.append((f"{key}.{rng.choice(('cls', 'cls', 'json', 'txt', 'pickle'))}", label))
            if rng.random() < 0.2:
                rng.shuffle(parts)
            for name, content in parts:
                item = tarfile.TarInfo(name)
                item.size = len(content)
                archive.addfile(item, io.BytesIO(content))
    return ["pool", "import", str(source if rng.random() < 0.7 else source / "0000.tar"), str(source.parent / "out")]


def arrays(rng: random.Random, source: Path) -> list[str]:
    """Images as arrays, and CIFAR's pickles."""
    shape = rng.choice(
        ((6, 16, 16, 3), (6, 16, 16, 3), (6, 3, 16, 16), (6, 16, 16, 1), (6,), (0, 16, 16, 3), (6, 0, 0, 3))
    )
    kind = rng.choice((np.uint8, np.uint8, np.float32, np.int64, np.bool_))
    images = np.zeros(shape, kind)
    labels: Any = rng.choice(
        (np.arange(6), np.full(6, -5), np.zeros(6), np.full(6, np.nan), np.zeros((6, 2)), ["a"] * 6)
    )
    if rng.random() < 0.3:
        batch = {
            "data": rng.choice((np.zeros((6, 3072), np.uint8), images)),
            "labels": rng.choice(([0, 1, 2] * 2, [9] * 6, "ab")),
        }
        bomb = Bomb(source.parent / "ran")
        for name in ("test_batch", *(f"data_batch_{index}" for index in range(1, 6))):
            content: Any = rng.choice((batch, batch, batch, bomb, [1]))
            place = source / "cifar-10-batches-py" / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(damaged(rng, pickle.dumps(content, protocol=2)))
        (place.parent / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}, protocol=2))
        return ["eval", str(source.parent / "student.safetensors"), "--data", str(source), "--device", "cpu"]
    whole = rng.random() < 0.3  # arrays are taken whole or not at all, so that some must be good
    if whole:
        images, labels = np.zeros((6, 16, 16, 3), np.uint8), np.arange(6)
    if rng.random() < 0.5:
        file, stream = source / "pool.npz", io.BytesIO()
        np.savez_compressed(stream, **{"images" if whole else rng.choice(("images", "x")): images, "labels": labels})  # type: ignore[arg-type]
        content = stream.getvalue()
    else:
        file = source / "pool.safetensors"
        content = save(
            {"images": torch.from_numpy(images), "labels": torch.arange(6 if whole else rng.choice((6, 6, 5)))}
        )
    file.write_bytes(content if whole else damaged(rng, content))
    return ["pool", "import", str(file), str(source.parent / "out")]


def checkpoint(rng: random.Random, source: Path) -> list[str]:
    """Weights with our header and without, as safetensors and as torch.save."""
    from dfkd_fast.models.small import cnn

    state = {name: value.clone() for name, value in cnn(3).state_dict().items()}
    name = rng.choice(list(state))
    wrong: list[Callable[[torch.Tensor], Any]] = [
        *(
            lambda value: value * float("nan"),
            lambda value: value[..., :1].contiguous() if value.dim() else value[None],
            lambda value: value.to(torch.int8),
        ),
        *(lambda value: value.to(torch.complex64), lambda value: value.half(), lambda value: value * 1e38),
    ]
    state[name] = rng.choice([*[lambda value: value] * 6, *wrong])(state[name])
    if rng.random() < 0.5:
        header = {"name": "cnn", "num_classes": 3, "image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "in_chans": 3}
        if rng.random() < 0.6:
            header[rng.choice([*header, "zzz"])] = rng.choice((*ODD_NUMBERS, *ODD_NAMES))  # type: ignore[assignment]
        text = json.dumps(header) if rng.random() < 0.8 else rng.choice(("{", "[1]", "null", "[" * 3000, "1" * 5000))
        file = source / "weights.safetensors"
        content = damaged(rng, save(state, {HEADER: text} if rng.random() < 0.9 else None), head=900)
        if rng.random() < 0.1:
            content = struct.pack("<Q", rng.choice((0, 2**40, 2**64 - 1))) + content[8:]
    else:
        file, stream = source / "weights.pth", io.BytesIO()
        torch.save(
            wrapped(rng, state, source.parent / "ran"), stream, _use_new_zipfile_serialization=rng.random() < 0.8
        )
        content = damaged(rng, stream.getvalue())
    file.write_bytes(content)
    named = ["--student", "cnn"] if rng.random() < 0.5 else []
    if rng.random() < 0.3:
        return ["teacher", "info", str(file)]
    return ["eval", str(file), "--data", str(source.parent / "images"), "--device", "cpu", *named]


def wrapped(rng: random.Random, state: dict[str, Any], canary: Path) -> Any:
    """A checkpoint's weights as trainers wrap them, or as nobody should."""
    loop: dict[str, Any] = {}
    loop["state_dict"] = loop
    deep: dict[str, Any] = state
    for _ in range(150):
        deep = {"state_dict": deep}
    sparse = {name: value.to_sparse() if value.ndim == 2 else value for name, value in state.items()}
    meta = {name: value.to("meta") for name, value in state.items()}
    prefix = rng.choice(("module.", "model.", "_orig_mod.", "\x1b[31m"))
    accuracy = rng.choice([93.1, 0.93, 10**400, -1, "x", math.nan, math.inf, True, [1], {"top1": 10**400}, None])
    stated = {"net": state, rng.choice(("acc", "best_prec1", "metrics", "val_acc")): accuracy}
    good = [state, stated, {"state_dict": {prefix + name: value for name, value in state.items()}}]
    odd = [
        loop,
        deep,
        sparse,
        meta,
        {"state_dict": state, "x": Bomb(canary)},
        Bomb(canary),
        [state],
        torch.zeros(3),
        {},
        None,
    ]
    return rng.choice([*good, *good, *good, *odd])


def config(rng: random.Random, source: Path) -> list[str]:
    """A TOML file. The teacher's weights are missing, so that a config with nothing wrong trains nothing."""
    from dfkd_fast.catalog import presets

    table = tomllib.loads(presets("nayer")["digits"].read_text())
    for _ in range(rng.choice((0, 1, 1, 2))):
        part = rng.choice([table, *(value for value in table.values() if isinstance(value, dict))])
        value = rng.choice([value for value in (*ODD_NUMBERS, *ODD_NAMES[:6]) if value is not None])
        part[rng.choice([*part, "method", "zzz", "run_dir", "seed", "threads", "epochs", "--help"])] = value
    text = tomli_w.dumps(table).encode("utf-8", "surrogateescape")
    if rng.random() < 0.1:
        text = rng.choice(
            (b"a = " + b"[" * 5000, b"seed = " + b"9" * 5000, b"\xef\xbb\xbf" + text, b"a = 1\0", b"x.y.z = 1")
        )
    file = source / "recipe.toml"
    file.write_bytes(damaged(rng, text, head=len(text)) if rng.random() < 0.5 else text)
    last = ["--teacher", "resnet8", "--teacher-weights", "missing.pth", "--no-train-teacher", "--device", "cpu"]
    return [
        "train",
        "nayer",
        "--preset",
        "digits",
        "--config",
        str(file),
        "--run-dir",
        str(source.parent / "out"),
        *last,
    ]


def reader(rng: random.Random, data: Path, place: Path) -> list[str]:
    """A command that reads labelled images."""
    if rng.random() < 0.3:
        source = data / rng.choice(("test", "test", "train", "")) if data.is_dir() else data
        return ["pool", "import", str(source), str(place / "out"), "--image-size", "16"]
    return ["eval", str(place / "student.safetensors"), "--data", str(data), "--device", "cpu"]


KINDS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    "config": config,
    "checkpoint": checkpoint,
    "folder": folder,
    "tar": tar,
    "shard": shard,
    "arrays": arrays,
}
