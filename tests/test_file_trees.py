"""Folders and archives as people have them: links are followed, what is passed over is named, labels never shift."""

from __future__ import annotations

import os
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dfkd_fast.data.splits import ImageSet, load_split, load_test_split
from dfkd_fast.data.stream import Decoding, ImageStream
from dfkd_fast.errors import UserError
from dfkd_fast.files import archives
from dfkd_fast.files import trees as file_trees

CLASSES = ("ant", "bee", "cow")


def png(level: int, size: int = 8) -> bytes:
    file = BytesIO()
    Image.new("RGB", (size, size), (level, 2 * level % 256, 9)).save(file, "png")
    return file.getvalue()


def tree(root: Path, classes: tuple[str, ...] = CLASSES, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Two pictures a class and split; their level tells class and number."""
    for split in splits:
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                (root / split / name / f"{number}.png").write_bytes(png(20 * label + number))
    return root


def levels(found: ImageSet) -> list[int]:
    return found.images[:, 0, 0, 0].tolist()


def refusal(source: Path, split: Any = "test") -> str:
    with pytest.raises(UserError) as caught:
        load_split(source, split)
    message = str(caught.value)
    assert message.startswith(f"--data {source}")
    assert "\n" not in message
    message.encode()  # can be printed
    return message


def assert_whole(source: Path) -> None:
    found = load_split(source, "test")
    assert found.class_names == CLASSES
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert levels(found) == [0, 1, 20, 21, 40, 41]


def link_class(root: Path) -> None:
    for split in ("train", "test"):
        shutil.move(root / split / "bee", root.parent / f"store-{split}")
        (root / split / "bee").symlink_to(f"../../store-{split}")


def link_everything(root: Path) -> None:
    shutil.move(root, root.parent / "store")
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for name in CLASSES:
            (root / split / name).symlink_to(root.parent / "store" / split / name)


def link_split(root: Path) -> None:
    shutil.move(root / "test", root.parent / "elsewhere")
    (root / "test").symlink_to(root.parent / "elsewhere")


def link_file(root: Path) -> None:
    shutil.move(root / "test" / "bee" / "1.png", root.parent / "picture")
    (root / "test" / "bee" / "1.png").symlink_to(root.parent / "picture")


@pytest.mark.parametrize("link", [link_class, link_everything, link_split, link_file])
def test_links_in_folders_are_followed(tmp_path: Path, link: Callable[[Path], None]) -> None:
    link(tree(tmp_path / "tree"))
    assert_whole(tmp_path / "tree")


def test_links_to_nothing_and_round_in_circles(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    (root / "test" / "ant" / "2.png").symlink_to("gone.png")
    assert "test/ant/2.png is a link to nothing" in refusal(root)
    (root / "test" / "ant" / "2.png").unlink()
    (root / "test" / "ant" / "up").symlink_to("..")
    assert "test/ant/up lies in itself" in refusal(root)
    (root / "test" / "ant" / "up").unlink()
    (root / "test" / "ant" / "x.png").symlink_to("x.png")
    assert "test/ant/x.png" in refusal(root)


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    """A pipe would be waited for."""
    root = tree(tmp_path)
    os.mkfifo(root / "test" / "ant" / "2.png")
    assert "test/ant/2.png is a link to nothing, or no file" in refusal(root)


def test_folders_without_end(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    (root / "test" / "ant" / Path(*"x" * 80)).mkdir(parents=True)
    assert "lies in itself, or too deep" in refusal(root)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(root, "set")
    assert "lies in itself, or too deep" in refusal(tmp_path / "a.tar")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing without a word; as root, nothing is forbidden."""
    root, scandir = tree(tmp_path), os.scandir

    def forbidden(folder: Any) -> Any:
        if Path(folder).name == "bee":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(file_trees.os, "scandir", forbidden)
    assert "bee cannot be read (Permission denied)" in refusal(root)


def write_tar(path: Path, members: list[tuple[str, Any]], mode: Any = "w") -> Path:
    """Members: bytes are files, None folders, ("hard" | "soft", target) links."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, tuple):
                member.type = tarfile.LNKTYPE if content[0] == "hard" else tarfile.SYMTYPE
                member.linkname = content[1]
            else:
                member.size = len(content)
            tar.addfile(member, BytesIO(content) if isinstance(content, bytes) else None)
    return path


PLAIN = [
    (f"test/{name}/{number}.png", png(20 * label + number)) for label, name in enumerate(CLASSES) for number in (0, 1)
]
MOVED = PLAIN[3][1]
LINKED: dict[str, list[tuple[str, Any]]] = {  # what links lead to is hidden, so that it is no class of its own
    "hard": [*PLAIN[:3], (".x.png", MOVED), ("test/bee/1.png", ("hard", ".x.png")), *PLAIN[4:]],
    "soft": [*PLAIN[:3], ("test/bee/1.png", ("soft", "../../.x.png")), *PLAIN[4:], ("./.x.png", MOVED)],
    "class": [*PLAIN[:2], ("test/bee", ("soft", "../.b")), (".b/0.png", PLAIN[2][1]), (".b/1.png", MOVED), *PLAIN[4:]],
    "split": [*((name.replace("test", ".t"), content) for name, content in PLAIN), ("test", ("soft", ".t"))],
    "chain": [*PLAIN[:5], ("test/cow/1.png", ("soft", ".a")), ("test/cow/.a", ("hard", ".s")), (".s", PLAIN[5][1])],
    "twice": [("test/ant/0.png", png(99)), *PLAIN],  # the later counts, as where it is unpacked
}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kind", LINKED)
def test_links_in_a_tar_are_resolved_in_it(tmp_path: Path, kind: str, mode: str) -> None:
    source = write_tar(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), LINKED[kind], mode)
    assert_whole(source)
    if mode == "w":
        decoding: Any = {"decoding": Decoding(decoder="pil", workers=1), "device": torch.device("cpu"), "in_memory": 0}
        stream = load_test_split(source, image_size=8, **decoding)
        assert isinstance(stream, ImageStream)
        assert torch.cat([images for images, _ in stream.batches(4)])[:, 0, 0, 0].tolist() == [0, 1, 20, 21, 40, 41]


BAD_LINKS = {
    "is a link to test/ant/gone.png, not in the tar": ("soft", "gone.png"),
    "is a link to nowhere.png, not in the tar": ("hard", "nowhere.png"),
    "is a link to ../../etc/passwd, not in the tar": ("soft", "../../../../etc/passwd"),
    "is a link that leads round in a circle": ("soft", "2.png"),
    "lies in itself": ("soft", ".."),
}


@pytest.mark.parametrize(("words", "link"), BAD_LINKS.items(), ids=BAD_LINKS)
def test_links_out_of_a_tar(tmp_path: Path, words: str, link: tuple[str, str]) -> None:
    assert words in refusal(write_tar(tmp_path / "a.tar", [*PLAIN, ("test/ant/2.png", link)]))


def test_a_tar_that_is_not_whole(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", PLAIN).read_bytes()
    file = tmp_path / "b.tar"
    cut = whole[: 4 * tarfile.BLOCKSIZE]  # behind a whole member: what tarfile takes for the end
    for content, words in {
        cut: "not a readable tar (it ends early)",
        whole + whole: "not a readable tar (more follows behind its end",
        whole[:1024] + b"\1" * 512 + whole[1536:]: "not a readable tar",
        b"": "not a readable tar",
        b"PK\3\4": "not a readable tar",
    }.items():
        file.write_bytes(content)
        assert words in refusal(file)


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def test_tars_that_claim_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.tar"
    write_tar(file, PLAIN)
    file.write_bytes(header("test/ant/9.png", 2**41) + file.read_bytes())
    assert "it claims more than 1,073,741,824 bytes, 300 times what it has" in refusal(file)
    file.write_bytes(header("test/ant/9.png", -1024) + write_tar(tmp_path / "b.tar", PLAIN).read_bytes())
    assert "not a readable tar" in refusal(file)  # would be read for ever
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    write_tar(file, [*PLAIN, ("notes", bytes(2**21))], "w:gz")
    assert "it claims more than" in refusal(file)
    monkeypatch.setattr(archives, "MAX_BYTES", 100)
    write_tar(file, [*PLAIN, ("test/ant/2.png", bytes(200))])
    assert "200 bytes; at most 100 are read" in refusal(file)


def test_zips_that_claim_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_zip(tmp_path / "a.zip", tree(tmp_path / "tree"))
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    with zipfile.ZipFile(source, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):  # each of them within the limit
            archive.writestr(f"notes{number}", bytes(2**19))
    assert "it claims more than" in refusal(source)


def test_a_sparse_member(tmp_path: Path) -> None:
    member = tarfile.TarInfo("test/ant/2.png")
    member.type = tarfile.GNUTYPE_SPARSE
    buffer = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    buffer[483:495] = b"77777777777\0"  # its real size
    buffer[148:156] = b" " * 8
    buffer[148:156] = b"%06o\0 " % sum(buffer[:512])
    file = write_tar(tmp_path / "a.tar", PLAIN)
    file.write_bytes(bytes(buffer) + file.read_bytes())
    assert "test/ant/2.png is stored with holes (sparse); unpack it" in refusal(file)


def write_zip(path: Path, root: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))
    return path


def test_a_zip_of_a_tree(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", tree(tmp_path / "tree"))
    assert_whole(source)
    options: Any = {"decoding": Decoding(decoder="pil", workers=2), "device": torch.device("cpu"), "in_memory": 0}
    images = [images for images, _ in load_test_split(source, image_size=8, **options).batches(4)]
    assert torch.cat(images)[:, 0, 0, 0].tolist() == [0, 1, 20, 21, 40, 41]
    content = bytearray(source.read_bytes())
    flags = content.index(b"PK\1\2") + 8
    (tmp_path / "locked.zip").write_bytes(content[:flags] + b"\1" + content[flags + 1 :])
    assert "is encrypted; unpack it" in refusal(tmp_path / "locked.zip")
    content[100:140] = bytes(40)
    (tmp_path / "bad.zip").write_bytes(content)
    assert "bad.zip" in refusal(tmp_path / "bad.zip")
    damaged = load_test_split(tmp_path / "bad.zip", image_size=8, **options)
    with pytest.raises(UserError, match=r"--data .*bad.zip: tree/.*\.png cannot be read"):
        list(damaged.batches(8))
    (tmp_path / "bad.zip").write_bytes(content[:300])
    assert "not a readable zip" in refusal(tmp_path / "bad.zip")


@pytest.mark.parametrize("packed", [False, True])
def test_empty_classes_are_named(tmp_path: Path, packed: bool) -> None:
    root = tree(tmp_path / "tree")
    for split in ("train", "test"):
        for file in (root / split / "bee").iterdir():
            file.unlink()
    source = tmp_path / "a.tar"
    if packed:
        with tarfile.open(source, "w") as tar:
            tar.add(root, "set")
    assert refusal(source if packed else root).endswith(
        "class folders without images: bee (empty); fill or remove them"
    )
    for split in ("train", "test"):
        for number in range(3):
            (root / split / "bee" / f"{number}.heic").write_bytes(b"x")
    assert "bee (3 .heic)" in refusal(root)


def test_what_is_passed_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "tree")
    for split in ("train", "test"):
        (root / split / "@eaDir" / "0.png").mkdir(parents=True)
        (root / split / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(png(1))
        (root / split / "ant" / "@eaDir").mkdir()
        (root / split / "ant" / "@eaDir" / "0.png").write_bytes(png(1))
        (root / split / "ant" / "._0.png").write_bytes(b"left by a file manager")
        (root / split / "ant" / "a.gif").write_bytes(b"GIF89a")
        (root / split / "ant" / "boxes.txt").write_text("0")
        (root / split / ".ipynb_checkpoints").mkdir()
        (root / split / ".ipynb_checkpoints" / "0.png").write_bytes(png(1))
        (root / split / "Thumbs.db").write_bytes(b"x")
    for _ in range(2):
        assert_whole(root)
    said = f"--data {root}: passed over 2 .gif files, 2 AppleDouble files (._*), 4 files in @eaDir\n"
    assert capsys.readouterr().out == said
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(root, "set")
    assert_whole(tmp_path / "a.tar")


def test_an_lfs_pointer_is_called_so(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "test" / "bee" / "0.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "test/bee/0.png cannot be decoded (a Git-LFS pointer, not the picture: git lfs pull)" in refusal(root)


def test_composed_and_decomposed_names_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """macOS writes one, Linux the other; the order of the classes must not depend on it."""
    composed = ("caf\u00e9", "cafz", "zebra")
    decomposed = tuple(unicodedata.normalize("NFD", name) for name in composed)
    for splits, names in (("train", decomposed), ("test", composed)):
        tree(tmp_path / "mixed", names, (splits,))
    for root in (tmp_path / "mixed", tree(tmp_path / "nfc", composed), tree(tmp_path / "nfd", decomposed)):
        found = load_split(root, "test")
        assert found.class_names == ("cafz", "caf\u00e9", "zebra")
        assert levels(found) == [20, 21, 0, 1, 40, 41]
    assert "nfd: names of folders are decomposed (NFD)" in capsys.readouterr().out
    tree(tmp_path / "nfc", decomposed[:1], ("train", "test"))
    assert "are called test/caf\u00e9, in different code points" in refusal(tmp_path / "nfc").replace("train", "test")


@pytest.mark.parametrize("packed", [False, True])
def test_names_that_are_no_utf8(tmp_path: Path, packed: bool) -> None:
    root = tree(tmp_path / "tree")
    for split in ("train", "test"):
        folder = os.fsencode(root / split)
        os.rename(os.path.join(folder, b"cow"), os.path.join(folder, b"c\xe9t"))
        os.rename(os.path.join(folder, b"c\xe9t", b"0.png"), os.path.join(folder, b"c\xe9t", b"\xff.png"))
    source = root
    if packed:
        source = tmp_path / "a.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(root, "set")
    found = load_split(source, "test")
    assert found.class_names == ("ant", "bee", "c\\xe9t")
    assert levels(found) == [0, 1, 20, 21, 41, 40]
    if not packed:
        os.truncate(os.fsencode(root / "test") + b"/c\xe9t/\xff.png", 20)
        assert "test/c\\xe9t/\\xff.png cannot be decoded" in refusal(root)


def tiny_imagenet(root: Path) -> Path:
    """Its layout as distributed, of three classes."""
    ids = ("n01443537", "n01629819", "n01641577")
    for label, word in enumerate(ids):
        (root / "train" / word / "images").mkdir(parents=True)
        (root / "train" / word / f"{word}_boxes.txt").write_text("")
        for number in range(2):
            (root / "train" / word / "images" / f"{word}_{number}.JPEG").write_bytes(png(20 * label + number))
    lines = []
    for name in ("val", "test"):
        (root / name / "images").mkdir(parents=True)
        for number, label in enumerate((2, 0, 1, 0)):
            (root / name / "images" / f"{name}_{number}.JPEG").write_bytes(png(20 * label + number))
            lines.append(f"val_{number}.JPEG\t{ids[label]}\t0\t32\t44\t62\n" if name == "val" else "")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(ids))
    return root


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_tiny_imagenet_as_distributed(tmp_path: Path, form: str) -> None:
    root = source = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    if form == "tar":
        source = tmp_path / "a.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(root, root.name)
    elif form == "zip":
        source = write_zip(tmp_path / "tiny-imagenet-200.zip", root)
    train, test = load_split(source, "train"), load_split(source, "test")
    assert (train.labels.tolist(), levels(train)) == ([0, 0, 1, 1, 2, 2], [0, 1, 20, 21, 40, 41])
    assert (test.labels.tolist(), levels(test)) == ([0, 0, 1, 2], [1, 3, 22, 40])
    assert test.class_names == train.class_names == ("n01443537", "n01629819", "n01641577")


def test_a_validation_image_that_no_list_names(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    (root / "val" / "images" / "val_9.JPEG").write_bytes(png(0))
    assert "val/images/val_9.JPEG is not listed in val/val_annotations.txt" in refusal(root)


def test_two_archives_of_one_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "test.tar", PLAIN)
    write_tar(tmp_path / "test.tar.gz", PLAIN, "w:gz")
    assert "test.tar or test.tar.gz? Remove one" in refusal(tmp_path)
