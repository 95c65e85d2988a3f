"""Checkpoints of every common wrapping load; what is unsafe or does not fit is refused in one line naming the flag."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.models.small import cnn
from dfkd_fast.models.weights.read import difference, load_weights, read_weights

FLAG = "--teacher-weights"


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return cnn(10).state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 200, "acc": 95.7},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": prefixed(state, "module.")},
        lambda state: prefixed(state, "_orig_mod.module."),
        lambda state: {"model": prefixed(state, "module._orig_mod.")},
    ],
)
def test_wrappings_are_taken_off(tmp_path: Path, state: dict[str, Tensor], wrap: object) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(wrap(state), path)  # type: ignore[operator]
    assert_same(read_weights(path, flag=FLAG).tensors, state)


def test_safetensors_with_header(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file(prefixed(state, "module."), path, metadata={"key": "value"})
    weights = read_weights(path, flag=FLAG)
    assert_same(weights.tensors, state)
    assert weights.metadata == {"key": "value"}


def test_a_prefix_of_some_keys_belongs_to_the_network(tmp_path: Path) -> None:
    mixed = {"module.weight": torch.ones(1), "bias": torch.ones(1)}
    torch.save(mixed, tmp_path / "x.pt")
    assert_same(read_weights(tmp_path / "x.pt", flag=FLAG).tensors, mixed)


def test_a_file_without_tensors_misses_them_all(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    weights = read_weights(tmp_path / "none.safetensors", flag=FLAG)
    with pytest.raises(UserError, match="17 missing"):
        load_weights(cnn(10), weights.tensors, name="cnn", path=tmp_path, flag=FLAG)


class Recorder:
    """Unpickling it would leave a trace."""

    opened = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Recorder.record, ("x",))

    @staticmethod
    def record(_: str) -> None:
        Recorder.opened = True


@pytest.mark.parametrize("content", [Recorder(), {"deep": [Recorder()]}])
def test_pickled_objects_are_refused_unopened(tmp_path: Path, state: dict[str, Tensor], content: object) -> None:
    path = tmp_path / "unsafe.pth"
    torch.save({"state_dict": state, "args": content}, path)
    with pytest.raises(UserError, match=rf"^{FLAG} {path}: holds a pickled [\w.]+, which is not safe to read; .*$"):
        read_weights(path, flag=FLAG)
    assert not Recorder.opened


def write_garbage(path: Path) -> None:
    path.write_bytes(b"these are no weights at all")


def write_truncated(path: Path) -> None:
    torch.save(cnn(10).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-4000])


def write_text_dict(path: Path) -> None:
    torch.save({"accuracy": 95.7, "note": "no weights"}, path)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("absent.pth", lambda path: None, "no such file"),
        ("folder", Path.mkdir, "is a folder, not a file"),
        ("garbage.safetensors", write_garbage, "not a readable safetensors file"),
        ("garbage.pth", write_garbage, "not a readable torch checkpoint"),
        ("empty.pth", Path.touch, "not a readable torch checkpoint"),
        ("truncated.pth", write_truncated, "not a readable torch checkpoint"),
        ("dict.pth", write_text_dict, "not a state dict: accuracy, note hold no tensor"),
        ("tensor.pth", lambda path: torch.save(torch.ones(3), path), "holds a Tensor, not a state dict"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, write: object, words: str) -> None:
    path = tmp_path / name
    write(path)  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        read_weights(path, flag=FLAG)
    message = str(caught.value)
    assert message.startswith(f"{FLAG} {path}: ")
    assert words in message
    assert "\n" not in message


def test_load_is_exact_and_strict(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = cnn(10)
    load_weights(model, state, name="cnn", path=tmp_path, flag=FLAG)
    assert_same(model.state_dict(), state)


def test_missing_batch_counters_are_forgiven(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    model = cnn(10)
    load_weights(model, old, name="cnn", path=tmp_path, flag=FLAG)
    assert_same(model.state_dict(), state)


def test_difference_counts_and_names_what_differs(state: dict[str, Tensor], tmp_path: Path) -> None:
    other = {key: value for key, value in state.items() if not key.startswith("conv")}
    other["fc.weight"] = torch.zeros(100, 64)
    other["head.bias"] = torch.zeros(100)
    model = cnn(10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, other, name="cnn", path=tmp_path / "t.pth", flag=FLAG)
    assert str(caught.value) == (
        f"{FLAG} {tmp_path / 't.pth'}: does not fit cnn (3 missing: conv1.weight, conv2.weight, conv3.weight; "
        "1 unexpected: head.bias; 1 of another shape: fc.weight 100x64 instead of 10x64)"
    )
    assert_same(model.state_dict(), before)


def test_difference_shows_the_first_few() -> None:
    network = {f"layer{index}.weight": torch.zeros(1) for index in range(9)}
    assert difference(network, network) == ""
    assert difference(network, {}) == "9 missing: layer0.weight, layer1.weight, layer2.weight, ..."
