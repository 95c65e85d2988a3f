"""The formats that a network is exported to: how each is written, and how it is read back to be checked."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.models.int8_answers import quiet
from dfkd_fast.models.normalized import NormalizedNetwork
from dfkd_fast.models.programs import ABOUT_FILE as ABOUT_FILE
from dfkd_fast.training.checkpoints.checkpoint import load_network, save_network

INPUT, OUTPUT = "images", "logits"
ABOUT = "dfkd_fast"
"""entry of an ONNX file's metadata with what the file is, as JSON"""

Answer = Callable[[Tensor], Tensor]
"""images (B, C, H, W) in [0, 1] -> logits (B, K)"""


class Format(NamedTuple):
    """A format of exported networks."""

    ending: str
    """of its files"""
    write: Callable[[NormalizedNetwork, Path, Mapping[str, Any], int], str]
    """write a network with what is known of it (JSON) and, for ONNX, an opset; returns how it was made, in words"""
    read: Callable[[Path], Answer]
    """open such a file"""


def _example(network: NormalizedNetwork) -> Tensor:
    return torch.rand(2, *network.info.shape, generator=torch.Generator().manual_seed(0))


def _traced(network: NormalizedNetwork) -> torch.export.ExportedProgram:
    """The network as torch.export's graph, for any number of images."""
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(network, (_example(network),), dynamic_shapes=({0: batch},))


def _write_onnx(network: NormalizedNetwork, file: Path, about: Mapping[str, Any], opset: int) -> str:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        _import(module)
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        _traced(network),
        (_example(network),),
        dynamo=True,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: batch},),
        external_data=False,
        verbose=False,
    )
    assert program is not None, "what torch.onnx.export returns with dynamo"
    written = program.model.opset_imports[""]
    if written != opset:
        raise UserError(f"--opset {opset}: the network can be written in opset {written} only; choose {written}")
    program.model.metadata_props[ABOUT] = json.dumps(about)
    program.save(str(file), external_data=False)
    return f"opset {opset}"


def _read_onnx(file: Path) -> Answer:
    onnxruntime = _import("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.contiguous().numpy()})[0])


def _write_program(network: NormalizedNetwork, file: Path, about: Mapping[str, Any], opset: int) -> str:
    torch.export.save(_traced(network), file, extra_files={ABOUT_FILE: json.dumps(about)})
    return f"torch {torch.__version__}"


def _read_program(file: Path) -> Answer:
    return torch.export.load(file).module()


def _write_script(network: NormalizedNetwork, file: Path, about: Mapping[str, Any], opset: int) -> str:
    try:
        made, how = torch.jit.script(network), "scripted"
    except Exception as refused:  # of any kind: it reads the network's own code
        reason = (str(refused).strip().splitlines() or [type(refused).__name__])[0]
        with torch.no_grad():
            made, how = torch.jit.trace(network, _example(network)), f"traced, as it cannot be scripted ({reason})"
    torch.jit.save(made, str(file), _extra_files={ABOUT_FILE: json.dumps(about)})
    return how


def _read_script(file: Path) -> Answer:
    return torch.jit.load(str(file))


def _write_safetensors(network: NormalizedNetwork, file: Path, about: Mapping[str, Any], opset: int) -> str:
    save_network(file, network.network, network.info)
    return "weights alone: mean and std are in its header, and load_student applies them"


def _read_safetensors(file: Path) -> Answer:
    return NormalizedNetwork(*load_network(file, flag="--out")).eval()


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
    "torch-export": Format(".pt2", _write_program, _read_program),
    "torchscript": Format(".pt", _write_script, _read_script),
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors),
}
"""by the name that `--to` has"""


def write(to: str, network: NormalizedNetwork, file: Path, about: Mapping[str, Any], opset: int) -> tuple[str, Answer]:
    """Write a network, in evaluation mode on the CPU, as `file`; returns how it was made and the file, opened again.

    Raises UserError where a package is missing or the network has no such form.
    """
    form = FORMATS[to]
    try:
        with quiet(), torch.no_grad():
            how = form.write(network, file, about, opset)
            return how, form.read(file)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # of any kind: exporters run and read the network's own code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--to {to}: {network.info.name} cannot be exported ({reason[:300]})") from error


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--to onnx: needs {module} ({error}); pip install 'dfkd-fast[export]'") from None
