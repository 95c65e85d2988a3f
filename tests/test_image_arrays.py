"""Data sets in one file: MedMNIST's arrays and CIFAR's archive as distributed; files that lie are refused."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfkd_fast.data.splits import check_disjoint_splits, load_split, load_test_split
from dfkd_fast.data.stream import Decoding
from dfkd_fast.errors import UserError
from dfkd_fast.files import arrays as array_files
from dfkd_fast.files.arrays import NpzFile

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def arrays(channels: tuple[int, ...] = (), **changed: Any) -> dict[str, np.ndarray]:
    """As MedMNIST has them: three splits, labels (N, 1)."""
    draw = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for split, count in {"train": 9, "val": 3, "test": 6}.items():
        found[f"{split}_images"] = draw.integers(0, 256, (count, 28, 28, *channels), dtype=np.uint8)
        found[f"{split}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
    return {name: values for name, values in {**found, **changed}.items() if values is not None}


def refusal(source: Path, split: Any = "test") -> str:
    with pytest.raises(UserError) as caught:
        load_split(source, split)
    message = str(caught.value)
    assert message.startswith(f"--data {source}")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("held", [(), (3,)])
def test_medmnist_as_distributed(tmp_path: Path, save: Callable[..., None], held: tuple[int, ...]) -> None:
    content = arrays(held)
    source = tmp_path / "pathmnist.npz"
    save(source, **content)
    for channels in (1, 3):
        train, test = (load_split(source, split, channels=channels) for split in ("train", "test"))  # type: ignore[arg-type]
        assert test.images.shape == (6, 28, 28, channels)
        assert train.labels.tolist() == [0, 1, 2] * 3
        assert test.labels.tolist() == [0, 1, 2] * 2
        assert test.class_names == ("0", "1", "2")
        if channels == (held or (1,))[0]:
            assert np.array_equal(test.images.numpy(), content["test_images"].reshape(6, 28, 28, channels))
    check_disjoint_splits(source)
    assert load_split(source, "test", image_size=14).images.shape == (6, 14, 14, 3)
    assert torch.equal(load_test_split(source, decoding=Decoding(), device=torch.device("cpu")).labels, test.labels)


WRONG: dict[str, dict[str, Any]] = {
    "no `test_labels`, it holds train_images": {"test_labels": None},
    "`test_images` is torch.float32 [6, 28, 28, 1]; expected uint8": {"test_images": np.zeros((6, 28, 28), "f4")},
    "`test_images` is torch.uint8 [6, 28, 28, 28]": {"test_images": np.zeros((6, 28, 28, 28), "u1")},
    "`test_images` is torch.uint8 [6, 3, 28, 28]": {"test_images": np.zeros((6, 3, 28, 28), "u1")},
    "its images have 4 channels, not 3; give --in-chans 4": {"test_images": np.zeros((6, 28, 28, 4), "u1")},
    "6 images but 5 labels": {"test_labels": np.zeros((5, 1), "u1")},
    "`test_labels` is [6, 14]; expected one class": {"test_labels": np.zeros((6, 14), "u1")},
    "`test_labels` is [0, 1]; expected one class": {"test_labels": np.zeros((0, 1), "u1")},
    "`test_labels` are no class numbers (torch.int64, -1 to -1)": {"test_labels": np.full((6, 1), -1)},
    "`test_labels` are no class numbers (torch.float64": {"test_labels": np.zeros(6)},
    "`test_labels` is <U1": {"test_labels": np.array(["a"] * 6)},
    "`test_labels` is object": {"test_labels": np.array([None] * 6)},
    "one class (0)": {"test_labels": np.zeros((6, 1), "u1"), "train_labels": np.zeros((9, 1), "u1")},
}


@pytest.mark.parametrize(("words", "changed"), WRONG.items(), ids=WRONG)
def test_arrays_that_are_no_such_set(tmp_path: Path, words: str, changed: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", **arrays(**changed))
    assert words in refusal(tmp_path / "a.npz")


def npy(shape: object, content: bytes, dtype: str = "|u1") -> bytes:
    """A .npy file that claims a shape."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + content


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


LIES = {
    "more than it holds": (
        npy((10**12, 3), bytes(9)),
        "`images` claims [1000000000000, 3] of uint8, and holds 9 bytes",
    ),
    "less than it holds": (npy((2, 2), bytes(9)), "claims [2, 2] of uint8, and holds 9 bytes"),
    "negative": (npy((-3, -3), bytes(9)), "claims [-3, -3]"),
    "no numbers in the shape": (npy(("a",), bytes(9)), "cannot be read"),
    "a scalar": (npy((), bytes(1)), "expected rows of numbers"),
    "objects": (npy((1,), bytes(8), "|O"), "expected rows of numbers"),
    "complex": (npy((1,), bytes(16), "<c16"), "expected rows of numbers"),
    "wide floats": (npy((1,), bytes(16), "<f16"), "expected rows of numbers"),
    "code for a header": (b"\x93NUMPY\1\0\x40\0" + b"__import__('os').abort()".ljust(64), "cannot be read"),
    "no array": (b"what?", "cannot be read"),
    "another version": (b"\x93NUMPY\7\0" + bytes(99), "version (7, 0)"),
    "nothing": (b"", "cannot be read"),
}


@pytest.mark.parametrize(("content", "words"), LIES.values(), ids=LIES)
def test_arrays_that_lie(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=r"^import a: cannot be read") as caught:
        NpzFile(packed(tmp_path / "a.npz", images=content), "import a").whole("images")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compressed_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "FREE_BYTES", 2**16)
    bomb = packed(tmp_path / "a.npz", images=npy((2**22,), bytes(2**22)))
    with pytest.raises(UserError, match=r"claims more than 1,\d+,\d+ bytes, 300 times what it has"):
        NpzFile(bomb, "import a")


def test_rows_come_as_they_were_written(tmp_path: Path) -> None:
    values = np.arange(60, dtype=">i4").reshape(5, 4, 3)
    np.savez(tmp_path / "a.npz", plain=values, columns=np.asfortranarray(values.astype("f8")))
    file = NpzFile(tmp_path / "a.npz", "import a")
    assert file.shapes == {"plain": (5, 4, 3), "columns": (5, 4, 3)}
    for name in ("plain", "columns"):
        rows = [file.next_rows(name, 2) for _ in range(4)]
        assert [len(part) for part in rows] == [2, 2, 1, 0]
        assert np.array_equal(np.concatenate(rows), values)
        torch.from_numpy(rows[0])
    with pytest.raises(UserError, match="cannot be read"):
        NpzFile(Path(__file__), "import a")


def cifar(**changed: Any) -> dict[str, bytes]:
    """The files of CIFAR-10 with two images each; `changed` entries of the test batch, or of the meta file."""
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    meta = {"label_names": changed.pop("label_names", CIFAR10)}
    files = {f"data_batch_{index}": {"data": pixels, "labels": [1, 2]} for index in range(1, 6)}
    found = {**files, "test_batch": {"data": pixels, "labels": [3, 9], **changed}, "batches.meta": meta}
    return {name: pickle.dumps(content, protocol=2) for name, content in found.items()}


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_cifars_archive_as_distributed(tmp_path: Path) -> None:
    source = archive(tmp_path / "cifar-10-python.tar.gz", cifar())
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name, content in cifar().items():
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
    for split in ("train", "test"):
        packed, unpacked = load_split(source, split), load_split(tmp_path, split)  # type: ignore[arg-type]
        assert packed.digest == unpacked.digest
        assert packed.labels.tolist() == ([1, 2] * 5 if split == "train" else [3, 9])
    assert load_split(source, "test", channels=1).images.shape == (2, 32, 32, 1)
    check_disjoint_splits(source)


DAMAGED: dict[str, dict[str, Any]] = {
    "(label 10; expected 0 to 9)": {"labels": [3, 10]},
    "(label -1; expected 0 to 9)": {"labels": [3, -1]},
    "(label 1.5; expected 0 to 9)": {"labels": [3, 1.5]},
    "(label True; expected 0 to 9)": {"labels": [3, True]},
    "(label '3'; expected 0 to 9)": {"labels": ["3", 3]},
    "(labels are str)": {"labels": "39"},
    "(`data` is float32 (2, 3072); expected uint8 (N, 3072))": {"data": np.zeros((2, 3072), "f4")},
    "(`data` is uint8 (2, 100)": {"data": np.zeros((2, 100), "u1")},
    "(`data` is list": {"data": [[0] * 3072] * 2},
    "(class names that are no text)": {"label_names": [*CIFAR10[:9], 7]},
    "(two classes of one name)": {"label_names": [*CIFAR10[:9], "cat"]},
}


@pytest.mark.parametrize(("words", "changed"), DAMAGED.items(), ids=DAMAGED)
def test_damaged_cifar_files(tmp_path: Path, words: str, changed: dict[str, Any]) -> None:
    assert f"damaged CIFAR files {words}" in refusal(archive(tmp_path / "cifar-10-python.tar.gz", cifar(**changed)))


def test_cifar_files_without_class_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = archive(tmp_path / "cifar-10-python.tar.gz", cifar(label_names=[]))
    assert load_split(source, "test").class_names == tuple(CIFAR10)
    assert "batches.meta names no classes; taken: airplane, automobile" in capsys.readouterr().out


def test_a_pickle_that_nests_without_end(tmp_path: Path) -> None:
    files = cifar()
    files["test_batch"] = b"\x80\x02" + b"(" * 10**6
    assert "not one of torchvision's CIFAR files" in refusal(archive(tmp_path / "cifar-10-python.tar.gz", files))
