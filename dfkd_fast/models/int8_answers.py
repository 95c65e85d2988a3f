"""A teacher's answers in int8: onnxruntime's quantised convolutions, for a CPU. No gradient, no maps, no moments."""

from __future__ import annotations

import copy
import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.info import ModelInfo

FLAG = "--teacher-precision int8"
_MULTIPLIES_BYTES = ("avx512_vnni", "avx_vnni", "amx_int8")
"""what a CPU adds products of bytes with in 32 bits; others saturate at 16, and get weights of 7 bits"""


class Int8Answers:
    """A network as a static graph of int8 convolutions (QDQ, a scale for each output channel of weights), which
    `calibrate` makes: activations are scaled by the ranges that they have on the images that it is shown.

    Views (B, C, H, W), normalised -> logits (B, K), in the runtime's compute dtype.
    """

    def __init__(self, model: nn.Module, info: ModelInfo, runtime: Runtime) -> None:
        """Raises UserError where onnxruntime is missing, the device is no CPU, or the network cannot be exported."""
        check_int8_runtime(runtime)
        self.info, self.runtime = info, runtime
        self.agreement: float | None = None
        """share of the images that were shown beside those of `calibrate` which both answer alike"""
        self._float, self._quantised = _exported(model, info), b""
        self._session: Any = None

    def __call__(self, view: Tensor) -> Tensor:
        assert self._session is not None, "not calibrated"
        (logits,) = self._session.run(None, {"view": view.detach().float().contiguous().numpy()})
        return torch.from_numpy(logits).to(self.runtime.compute_dtype)

    @property
    def is_calibrated(self) -> bool:
        """Whether it can answer."""
        return self._session is not None

    def calibrate(self, views: Iterable[Tensor]) -> None:
        """Quantise by the ranges of activations on these batches (B, C, H, W)."""
        self._load(_quantised(self._float, iter(views)))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: a resumed run answers as before. Nothing before the calibration."""
        if not self.is_calibrated:
            return {}
        model = torch.frombuffer(bytearray(self._quantised), dtype=torch.uint8)
        return {"model": model, "agreement": torch.tensor(self.agreement, dtype=torch.float64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        if tensors:
            self.agreement = float(tensors["agreement"])
            self._load(tensors["model"].cpu().numpy().tobytes())

    def _load(self, model: bytes) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        self._quantised = model
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def check_int8_runtime(runtime: Runtime) -> None:
    """Raise UserError where a run on this runtime can have no int8 answers."""
    if runtime.device.type != "cpu":
        raise UserError(f"{FLAG}: for CPUs only, and the device is {runtime.device}; choose same, bf16 or fp16")
    if runtime.compilation != "off":
        raise UserError(f"{FLAG}: does not go with --compile {runtime.compilation}; choose --compile off")
    if runtime.world_size > 1:
        raise UserError(f"{FLAG}: for one process, whose images calibrate it, not {runtime.world_size}; choose same")
    import_onnxruntime()


def import_onnxruntime(module: str = "") -> Any:
    """onnxruntime, or a `module` of its quantisation. Raises UserError that names the extra where it is missing."""
    try:
        quantization = importlib.import_module(f"onnxruntime.quantization{module}")
        return quantization if module else importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(f"{FLAG}: needs onnxruntime and onnx ({error}); pip install 'dfkd-fast[int8]'") from None


def _exported(model: nn.Module, info: ModelInfo) -> bytes:
    """The network in evaluation mode as ONNX, in float32, for any number of images."""
    network, view = copy.deepcopy(model).cpu().float().eval(), info.blank(torch.zeros(())).expand(2, -1, -1, -1).clone()
    try:
        with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder, quiet(), torch.no_grad():
            file = Path(folder) / "exported.onnx"
            torch.onnx.export(
                network,
                (view,),
                file,
                dynamo=False,
                input_names=["view"],
                output_names=["logits"],
                dynamic_axes={"view": {0: "images"}, "logits": {0: "images"}},
            )
            return file.read_bytes()
    except Exception as error:  # of any kind: it runs the network's own code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{FLAG}: {info.name} cannot be exported to ONNX ({reason}); choose same") from error


def _quantised(model: bytes, views: Iterator[Tensor]) -> bytes:
    """The ONNX model with int8 weights and activations, both of which have their scales."""
    reading, writing, kinds = map(import_onnxruntime, (".calibrate", ".quantize", ".quant_utils"))
    prepare = import_onnxruntime(".shape_inference").quant_pre_process

    class Views(reading.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Any] | None:
            view = next(views, None)
            return None if view is None else {"view": view.detach().float().contiguous().numpy()}

    capabilities = torch.cpu.get_capabilities()
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder, quiet():
        given, prepared, made = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "made"))
        given.write_bytes(model)
        prepare(given, prepared, skip_symbolic_shape=True)
        writing.quantize_static(
            prepared,
            made,
            Views(),
            quant_format=kinds.QuantFormat.QDQ,
            activation_type=kinds.QuantType.QUInt8,
            weight_type=kinds.QuantType.QInt8,
            per_channel=True,
            reduce_range=not any(capabilities.get(name) for name in _MULTIPLIES_BYTES),
        )
        return made.read_bytes()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings, which say nothing that a user could change."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
