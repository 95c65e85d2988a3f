"""Checkpoints appear whole or not at all; networks and optimisers come back bit for bit."""

from __future__ import annotations

import json
import random
import resource
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import crc_of_json
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.weights.header import HEADER, SEAL
from dfkd_fast.optim import OptimizerSpec, reset_state, set_lr
from dfkd_fast.training.checkpoints.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    Shelf,
    latest_checkpoint,
    load_network,
    read_checkpoint,
    save_checkpoint,
    save_network,
)
from dfkd_fast.training.checkpoints.state_tensors import load_module, load_optimizer, module_tensors, optimizer_tensors
from dfkd_fast.training.records.run_record import read_run_record

INFO = ModelInfo(name="cnn_s", num_classes=3, image_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def checkpoint(epoch: int, phase: str = "synthesis", size: int = 4) -> Checkpoint:
    return Checkpoint(epoch=epoch, phase=phase, tensors={"part/x": torch.full((size,), float(epoch))}, record={"n": 1})


def network() -> nn.Module:
    model, _ = load_model("cnn_s", num_classes=3, image_size=16, mean=INFO.mean, std=INFO.std)
    return model


def test_the_newest_comes_back(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "checkpoints") is None
    for epoch, phase in ((0, "synthesis"), (0, "distillation"), (1, "synthesis"), (9, "synthesis"), (10, "synthesis")):
        save_checkpoint(tmp_path, checkpoint(epoch, phase), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00009-0-synthesis", "00010-0-synthesis"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.epoch, found.phase, found.record) == (10, "synthesis", {"n": 1})
    assert torch.equal(found.tensors["part/x"], torch.full((4,), 10.0))


def test_distillation_comes_after_synthesis_of_the_same_epoch(tmp_path: Path) -> None:
    for phase in ("distillation", "synthesis"):
        save_checkpoint(tmp_path, checkpoint(3, phase), keep=5)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.phase == "distillation"


def test_what_a_killed_process_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(0), keep=2)
    (tmp_path / ".00001-0-synthesis.partial").mkdir()
    (tmp_path / ".00001-0-synthesis.partial" / "state.json").write_text("{")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.epoch == 0
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    assert latest_checkpoint(tmp_path).epoch == 1  # type: ignore[union-attr]


def damaged(content: bytes, how: str, at: int) -> bytes:
    """A flipped bit, a cut, zeros in place of a page, or nothing left."""
    if how == "flip":
        return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
    if how == "cut":
        return content[:at]
    if how == "zeros":
        return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]
    return b""


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("how", ["flip", "cut", "zeros", "empty"])
def test_damage_is_found_and_the_older_checkpoint_taken(tmp_path: Path, name: str, how: str) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, checkpoint(epoch, size=40_000), keep=2)
    file = tmp_path / "00002-0-synthesis" / name
    content, draw = file.read_bytes(), random.Random(0)
    for at in [draw.randrange(len(content)) for _ in range(20)]:
        file.write_bytes(damaged(content, how, at))
        shelf = Shelf(tmp_path)
        found = latest_checkpoint(tmp_path)
        assert found is not None
        if found.epoch == 2:  # white space, or a place that was zero
            file.write_bytes(content)
            assert repr(found.record) == repr(read_checkpoint(file.parent).record)
            assert torch.equal(found.tensors["part/x"], torch.full((40_000,), 2.0))
            continue
        assert shelf.newest() == tmp_path / "00001-0-synthesis"
        (why,) = shelf.damage.values()
        assert str(why).startswith(f"{file}: ")


def test_damage_is_named_by_its_place(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(0, size=40_000), keep=2)
    file = tmp_path / "00000-0-synthesis" / "state.safetensors"
    file.write_bytes(damaged(file.read_bytes(), "flip", 93_625))
    with pytest.raises(DamagedCheckpoint, match=f"{file}: damaged within bytes 65536 to 131072"):
        read_checkpoint(file.parent)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_file_of_another_checkpoint_is_damage(tmp_path: Path, name: str) -> None:
    for epoch in (1, 2):
        save_checkpoint(tmp_path, checkpoint(epoch), keep=2)
    (tmp_path / "00002-0-synthesis" / name).write_bytes((tmp_path / "00001-0-synthesis" / name).read_bytes())
    assert latest_checkpoint(tmp_path).epoch == 1  # type: ignore[union-attr]


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(0), keep=2)
    file = tmp_path / "00000-0-synthesis" / "state.json"
    table = json.loads(file.read_text())
    del table["crc"]
    newer_one = {**table, "version": 7, "program": "9.0"}
    file.write_text(json.dumps({**newer_one, "crc": crc_of_json(newer_one)}))
    with pytest.raises(UserError, match=r"format 7, written by dfkd-fast 9\.0; this program reads up to 2") as newer:
        latest_checkpoint(tmp_path)
    assert not isinstance(newer.value, DamagedCheckpoint)
    file.write_text(json.dumps({"epoch": 0, "phase": "synthesis", "pool": {}}))  # as 0.1.0 once wrote it
    with pytest.raises(UserError, match=r"written by a dfkd-fast 0\.1\.0 of before checkpoints had checksums"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("part", ["optimizer", "method/start.learnt.stem", "synthesis_optimizer-32"])
def test_what_the_first_format_laid_out_otherwise_is_said(tmp_path: Path, part: str) -> None:
    """The optimiser of a generator, which would start anew unseen; whatever else it has is read."""
    tensors = {f"{part}/0.exp_avg": torch.zeros(3)}
    save_checkpoint(tmp_path, replace(checkpoint(0), tensors=tensors), keep=2)
    file = tmp_path / "00000-0-synthesis" / "state.json"
    table = {**json.loads(file.read_text()), "version": 1}
    del table["crc"]
    file.write_text(json.dumps({**table, "crc": crc_of_json(table)}))
    if part != "synthesis_optimizer-32":
        found = list(latest_checkpoint(tmp_path).tensors)  # type: ignore[union-attr]
        assert found == [f"{part}/0.exp_avg".replace("learnt.", "meta_parameters.")]
        return
    with pytest.raises(UserError, match=r"written by dfkd-fast \S+ in format 1, in which a generator's optimiser"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("version", [3, 5, 9])
def test_a_flipped_bit_in_a_version_is_damage(tmp_path: Path, version: int) -> None:
    """Not a newer format: the older checkpoint is taken, a network or a run's record is named as damaged."""
    for epoch in (1, 2):
        save_checkpoint(tmp_path, checkpoint(epoch), keep=2)
    file = tmp_path / "00002-0-synthesis" / "state.json"
    file.write_text(file.read_text().replace('"version": 2', f'"version": {version}', 1))
    assert latest_checkpoint(tmp_path).epoch == 1  # type: ignore[union-attr]
    student = tmp_path / "student.safetensors"
    save_network(student, network(), INFO)
    student.write_bytes(student.read_bytes().replace(rb"\"format\": 1", rb"\"format\": %d" % version, 1))
    with pytest.raises(UserError, match=f"{student}: damaged"):
        load_network(student)
    record = {"format": 1, "complete": True}
    content = json.dumps({**record, "format": version, "crc": crc_of_json(record)})
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        read_run_record(tmp_path / "run.json")


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file may grow beyond 64 KiB: the system refuses the write as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, small_files_only: None) -> None:
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, checkpoint(0), keep=2)
    with pytest.raises(UserError, match=rf"--run-dir {tmp_path}: no room to write .* --resume"):
        save_checkpoint(folder, checkpoint(1, size=100_000), keep=2)
    assert [path.name for path in folder.iterdir()] == ["00000-0-synthesis"]
    found = latest_checkpoint(folder)
    assert found is not None
    assert found.epoch == 0


def train_a_little(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: str, layout: torch.memory_format) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = network().to(memory_format=layout)
        groups = [{"params": list(model.parameters()), "lr": 0.1}]
        return model, OptimizerSpec(kind=kind, groups=groups, momentum=0.9).build()  # type: ignore[arg-type]

    model, optimizer = fresh()
    train_a_little(model, optimizer, 3)
    tensors = module_tensors("student", model) | optimizer_tensors("optimizer", optimizer)
    save_checkpoint(tmp_path, Checkpoint(epoch=0, phase="synthesis", tensors=tensors, record={}), keep=1)
    train_a_little(model, optimizer, 3)

    again, restored = fresh()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    load_module("student", again, found.tensors)
    load_optimizer("optimizer", restored, found.tensors)
    train_a_little(again, restored, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


class CountsInItsGroups(torch.optim.SGD):
    """Steps are counted in the group, as NVIDIA apex's FusedAdam does, and matter to the next step."""

    capturable = False

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            count = torch.tensor([1], dtype=torch.int32) if self.capturable else 1
            group["step"] = group["step"] + count if "step" in group else count
            group["lr"] = 0.1 / float(group["step"])
        super().step(closure)


@pytest.mark.parametrize("capturable", [False, True])
def test_steps_that_are_counted_in_groups_come_back(capturable: bool) -> None:
    def fresh() -> tuple[nn.Module, CountsInItsGroups]:
        torch.manual_seed(0)
        model = network()
        optimizer = CountsInItsGroups(model.parameters(), lr=0.1)
        optimizer.capturable = capturable
        return model, optimizer

    model, optimizer = fresh()
    train_a_little(model, optimizer, 3)
    tensors = module_tensors("student", model) | optimizer_tensors("optimizer", optimizer)
    again, restored = fresh()
    load_module("student", again, tensors)
    load_optimizer("optimizer", restored, tensors)
    assert restored.param_groups[0]["step"] == 3
    reset_state(restored)
    assert restored.param_groups[0]["step"] == 0
    load_optimizer("optimizer", restored, tensors)
    train_a_little(model, optimizer, 2)
    train_a_little(again, restored, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_reset_state_equals_a_new_optimizer_and_moves_nothing() -> None:
    torch.manual_seed(0)
    used = network()
    spec = OptimizerSpec(kind="adam", groups=[{"params": list(used.parameters()), "lr": 0.1}])
    optimizer = spec.build()
    train_a_little(used, optimizer, 2)
    state = used.state_dict()
    fresh = network()
    fresh.load_state_dict(state)
    addresses = [slot["exp_avg"].data_ptr() for slot in optimizer.state.values()]
    reset_state(optimizer)
    train_a_little(used, optimizer, 3)
    new = OptimizerSpec(kind="adam", groups=[{"params": list(fresh.parameters()), "lr": 0.1}]).build()
    train_a_little(fresh, new, 3)
    assert [slot["exp_avg"].data_ptr() for slot in optimizer.state.values()] == addresses
    for a, b in zip(used.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_set_lr_keeps_a_tensor() -> None:
    weight = nn.Parameter(torch.ones(2))
    lr = torch.tensor(0.1)
    optimizer = OptimizerSpec(kind="adam", groups=[{"params": [weight], "lr": lr}]).build()
    set_lr(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_a_network_file_says_what_it_is(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "student.safetensors"
    save_network(path, model, INFO)
    again, info = load_network(path)
    assert info == INFO
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [file.name for file in tmp_path.iterdir()] == ["student.safetensors"]
    content = path.read_bytes()
    for _ in range(4):
        save_network(path, model, INFO)
        assert path.read_bytes() == content


def test_a_damaged_network_is_refused(tmp_path: Path) -> None:
    """Weights and header: an outcome is a refusal or the same network."""
    model, path = network(), tmp_path / "student.safetensors"
    save_network(path, model, INFO)
    content, draw = path.read_bytes(), random.Random(0)
    header = int.from_bytes(content[:8], "little")
    places = [draw.randrange(len(content)) for _ in range(20)] + [draw.randrange(8 + header) for _ in range(60)]
    refused = 0
    for at in places:
        path.write_bytes(damaged(content, "flip", at))
        try:
            again, info = load_network(path)
        except UserError as error:
            refused += str(path) in str(error)
            continue
        assert info == INFO
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert refused >= 60  # what is left: the names of entries that nobody asks for
    path.write_bytes(damaged(content, "flip", len(content) - 1))
    with pytest.raises(UserError, match=f"{path}: damaged at "):
        load_network(path)


def test_networks_of_other_formats(tmp_path: Path) -> None:
    """One of a newer format is refused by name; one of before there were checksums is read."""
    model, path = network(), tmp_path / "student.safetensors"
    save_file(model.state_dict(), path, {HEADER: json.dumps({**asdict(INFO), SEAL: {"format": 2}})})
    with pytest.raises(UserError, match="format 2, of a newer dfkd-fast"):
        load_network(path)
    save_file(model.state_dict(), path, {HEADER: json.dumps(asdict(INFO))})
    assert load_network(path)[1] == INFO


def test_other_files_are_refused(tmp_path: Path) -> None:
    foreign, broken = tmp_path / "foreign.safetensors", tmp_path / "broken.safetensors"
    save_file({"x": torch.ones(1)}, foreign)
    broken.write_bytes(b"no")
    with pytest.raises(UserError, match="not written by dfkd-fast"):
        load_network(foreign)
    with pytest.raises(UserError, match="cannot be read"):
        load_network(broken)
    with pytest.raises(UserError, match="cannot be read"):
        load_network(tmp_path / "absent.safetensors")
