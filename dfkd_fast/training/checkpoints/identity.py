"""The identity of a run, by content: settings, precision, code, teacher, class vectors, collected images. A checkpoint
holds it, and a run is resumed only where all of it is the same, wherever its files lie by now.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dfkd_fast
import dfkd_kernels
from dfkd_fast import __version__
from dfkd_fast.config.own_networks import unplaced
from dfkd_fast.config.record import BY_MACHINE, settled
from dfkd_fast.config.sources import check_untouched
from dfkd_fast.config.train import CONFIG_FILE, TrainConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import of_file, of_json, of_tensors
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.registry import third_party_code
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training.ranks import Resumed
from dfkd_fast.training.real_images.collected import Collected
from dfkd_fast.training.records.run_record import active_backends

Identity = dict[str, dict[str, Any]]
"""by section: names with values or digests, as JSON"""

SAME_ELSEWHERE = {"teacher": ("file",), "data": ("path",), "config": BY_MACHINE}
"""what is recorded and may differ: another file with the same tensors, other images to evaluate on; and what older
checkpoints have among the settings, which is compared by what it came to
"""


def settings_identity(config: TrainConfig[Any], runtime: Runtime) -> Identity:
    """The sections that are known before anything is loaded: settings, the precision that they came to, code, and where
    evaluation images lie.
    """
    return {
        "config": settled(config),
        "precision": {"precision": runtime.precision},
        "code": dict(code_version()) | taking_part(config, runtime),
        "data": {"path": config.data},
    }


def content_identity(
    config: TrainConfig[Any],
    teacher: nn.Module,
    info: ModelInfo,
    vectors: tuple[Tensor, str],
    collected: Collected | None,
) -> Identity:
    """The sections of what was loaded. `teacher` as it was read; `vectors`: what `class_vectors` gave."""
    file = None if config.teacher_weights is None else of_file(config.teacher_weights)
    said = {**info.header(), "name": unplaced(info.name)}
    known = {"tensors": of_tensors(teacher.state_dict()), "info": of_json(said), "file": file}
    embeddings, source = vectors
    return {
        "teacher": known,
        "text": {"source": source, "vectors": of_tensors({"vectors": embeddings})},
        "collected": {"images": None if collected is None else collected.digest},
    }


@functools.cache
def code_version() -> tuple[tuple[str, str], ...]:
    """Name and version of what computes: this program, its source files, its compiled extension, torch."""
    sources: dict[str, str] = {}
    for package in (Path(dfkd_fast.__file__).parent, Path(dfkd_kernels.__file__).parent):
        sources |= {f"{package.name}/{file.relative_to(package)}": of_file(file) for file in package.rglob("*.py")}
    native = importlib.util.find_spec(f"{dfkd_kernels.__name__}._C")
    extension = "not built" if native is None or native.origin is None else of_file(Path(native.origin))
    versions = ("dfkd_fast", __version__), ("torch", torch.__version__)
    return *versions, ("source", of_json(sources)), ("extension", extension)


def taking_part(config: TrainConfig[Any], runtime: Runtime) -> dict[str, str]:
    """What else computes in this run: the kind of device, each operator's backend, the libraries that those or the
    networks come from, with their versions, and the source of a method that is not ours.
    """
    backends = active_backends(runtime)
    networks = (config.teacher, config.student)
    libraries = ["triton"] if "triton" in backends.values() else []
    for library, prefix in (("torchvision", "tv:"), ("timm", "timm:"), ("transformers", "hf:")):
        if any(name.startswith(prefix) for name in networks):
            libraries.append(library)
    operators = {f"kernel {op}": backend for op, backend in backends.items()}
    versions = {library: _version(library) for library in libraries} | third_party_code(config.method_name)
    return {"device": runtime.device.type} | operators | versions


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


class Likeness:
    """What a run is made of, and what it must be like: the checkpoint that it is taken up from, if there is one."""

    def __init__(
        self, config: TrainConfig[Any], runtime: Runtime, resumed: Resumed | None, *, other_code: bool
    ) -> None:
        """Compares settings and code. Raises UserError as `check_identity`."""
        self.config, self.identity, self.other_code = config, settings_identity(config, runtime), other_code
        checkpoint = resumed.checkpoint if resumed is not None else None
        self._saved: Identity | None = None if checkpoint is None else checkpoint.record["identity"]
        if resumed is not None and checkpoint is None:
            check_untouched(config.run_folder)
        self.check({})

    def check(self, contents: Identity) -> None:
        """Add what was loaded, and compare all. Raises UserError as `check_identity`."""
        self.identity = {**self.identity, **contents}
        if self._saved is not None:
            check_identity(self._saved, self.identity, self.config, other_code=self.other_code)


def check_identity(
    saved: Mapping[str, Any], found: Identity, config: TrainConfig[Any], *, other_code: bool = False
) -> None:
    """Raise UserError, with what differs, where a run in its folder was started with something else.

    Compares the sections of `found`. `other_code` lets another version of the code go on, and says what is another.
    """
    folder, undo = config.run_folder, "undo that, or start a new run"
    go_on = "use that one; --other-code goes on with this one, no longer bit for bit the same run"
    named = {
        "config": f"--resume {folder}: {CONFIG_FILE} or a flag",
        "precision": f"--precision {config.precision}: the precision",
        "code": f"--resume {folder}: the code",
        "teacher": f"--teacher-weights {config.teacher_weights}: the teacher",
        "text": f"--text {config.text}: the list of class vectors",
        "collected": f"--collected {config.collected}: the set of images",
    }
    if config.teacher_weights is None:
        named["teacher"] = f"--teacher {config.teacher}: the network"
    saved = {**saved, "precision": _precision(saved, found)}
    fixes = {"code": go_on, "precision": f"--precision {saved['precision'].get('precision')} goes on as it was"}
    for section, what in named.items():
        differ = _differences(section, saved[section], found[section]) if section in found else []
        if differ and section == "code" and other_code:
            note(f"--other-code: no longer bit for bit the same run ({'; '.join(differ)})")
        elif differ:
            fix = fixes.get(section, undo)
            raise UserError(f"{what} is not what the run was started with ({'; '.join(differ)}); {fix}")


def _precision(saved: Mapping[str, Any], found: Identity) -> dict[str, Any]:
    """What a run was started in. Older checkpoints know only what was asked for."""
    asked = saved["config"].get("precision")
    if "precision" in saved or asked != "auto":
        return dict(saved.get("precision", {"precision": asked}))
    now = found["precision"]
    note(f"--precision auto: what the run was started in was not recorded; it goes on in {now['precision']}")
    return now


def _differences(section: str, saved: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**found, **saved} if key not in SAME_ELSEWHERE.get(section, ())]
    pairs = [(key, saved.get(key), found.get(key)) for key in keys]
    return [f"{key} = {_short(now)}, was {_short(before)}" for key, before, now in pairs if before != now]


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text  # a digest
