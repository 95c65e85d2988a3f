"""Networks that are files by themselves: a program that torch.export wrote (`.pt2`), or TorchScript (`.pt`, `.ts`).

An exported program is a graph of operators. Its convolutions, BatchNorms and linear layers become modules again, so
that methods can read what these see. TorchScript keeps its layers to itself: it answers, and passes gradients back.
"""

from __future__ import annotations

import json
import operator
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.own_networks import program_file
from dfkd_fast.errors import UserError
from dfkd_fast.messages.notes import note
from dfkd_fast.models.answers import settle_answer
from dfkd_fast.models.info import ModelInfo, Source
from dfkd_fast.models.libraries import Order

_ATEN = torch.ops.aten
_NORMS = (_ATEN.batch_norm.default, _ATEN.cudnn_batch_norm.default)
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _ATEN.relu.default: F.relu,
    _ATEN.relu_.default: F.relu,
    _ATEN.silu.default: F.silu,
    _ATEN.silu_.default: F.silu,
    _ATEN.hardswish.default: F.hardswish,
    _ATEN.hardswish_.default: F.hardswish,
    _ATEN.adaptive_avg_pool2d.default: F.adaptive_avg_pool2d,
    _ATEN.flatten.using_ints: torch.flatten,
    _ATEN.mean.dim: torch.mean,
    _ATEN.add.Tensor: operator.add,
    _ATEN.add_.Tensor: operator.add,
}
"""operators by the names that networks in Python call them by, which fusion and the search for features know"""


ABOUT_FILE = "dfkd_fast.json"
"""within a program that `dfkd-fast export` wrote: what it is; its graph takes pixels in [0, 1] and normalises them"""


class Scripted(nn.Module):
    """A TorchScript program as a module: normalised images (B, C, H, W) -> whatever it answers."""

    def __init__(self, program: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.program = program

    @property
    def has_statistics(self) -> bool:
        """Whether it has BatchNorm layers, whose input nobody sees."""
        return any(name.endswith("running_mean") for name, _ in self.program.named_buffers())

    def forward(self, view: Tensor) -> Any:
        return self.program(view)


def program_network(order: Order) -> tuple[nn.Module, ModelInfo]:
    """The network in a file of either kind, with its weights. An exported one says itself what images it takes.

    Raises UserError for a file that is neither, or that was written in training mode or for one number of images.
    """
    path, called = program_file(order.spec), f"{order.flag} {order.spec}"
    assert path is not None, "a spec that names such a file"
    if not path.is_file():
        raise UserError(f"{called}: no such file")
    note(f"{called}: runs the program in it")
    model, values = _exported(path, called) if path.suffix == ".pt2" else _scripted(path, called)

    def known(classes: int) -> ModelInfo:
        return order.info(Source("its file" if values else "its answer", {**values, "num_classes": classes}))

    width = settle_answer(model, known(2).shape, order.num_classes, name=called)
    return model, known(width)


def is_torchscript(path: Path) -> bool:
    """Whether a file is what torch.jit.save writes; torch.save's has no code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in f"/{name}" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _scripted(path: Path, called: str) -> tuple[nn.Module, dict[str, Any]]:
    about = {ABOUT_FILE: ""}
    if not is_torchscript(path):
        raise UserError(f"{called}: is no TorchScript; name its network, and give this file by {order_flag(called)}")
    try:
        # a copy of a script with gradients would have none that a leaf has
        program = torch.jit.load(path, map_location="cpu", _extra_files=about)
        return Scripted(program).float().requires_grad_(False), _stated(about)
    except Exception as error:  # damaged files make the reader fail in any way
        raise UserError(f"{called}: cannot be read ({_reason(error)})") from error


def order_flag(called: str) -> str:
    """The flag that brings the weights of the network that `called` begins with."""
    return f"{called.split()[0]}-weights" if called.startswith("--") else "--student"


def _exported(path: Path, called: str) -> tuple[nn.Module, dict[str, Any]]:
    about = {ABOUT_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=about)
        module = program.module(check_guards=False)
    except Exception as error:
        raise UserError(f"{called}: cannot be read as a program of torch.export ({_reason(error)})") from error
    assert isinstance(module, fx.GraphModule)
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    shape: tuple[Any, ...] = inputs[0].meta["val"].shape if len(inputs) == 1 else ()
    if len(shape) != 4:
        raise UserError(f"{called}: takes {len(inputs)} inputs, not images (B, C, H, W) alone")
    if isinstance(shape[0], int):
        raise UserError(
            f"{called}: was exported for batches of {shape[0]}; export it for any, "
            "dynamic_shapes=({0: torch.export.Dim.AUTO},)"
        )
    graph.set_codegen(fx.graph.CodeGen())
    output = next(node for node in graph.nodes if node.op == "output")
    answers = output.args[0]
    if isinstance(answers, list | tuple) and len(answers) == 1:
        output.args = (answers[0],)
    _with_modules(module, called)
    lifted = fx.GraphModule(module, graph)
    sizes = shape[1:]
    fixed = all(isinstance(side, int) for side in sizes)
    values = {"in_chans": sizes[0], "image_size": ImageSize(*sizes[1:])} if fixed else {}
    return lifted.float(), values | _stated(about)


def _stated(about: dict[str, Any]) -> dict[str, Any]:
    """What `dfkd-fast export` says of a program that it wrote; nothing of those of others."""
    if not about[ABOUT_FILE]:
        return {}
    said = json.loads(about[ABOUT_FILE])
    channels, height, width = said["input"]["shape"][1:]
    return {
        "in_chans": channels,
        "image_size": ImageSize(height, width),
        "interpolation": said["input"]["resized_with"],
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "class_names": tuple(said["class_names"]),
    }


def _with_modules(module: fx.GraphModule, called: str) -> None:
    """Make modules of the layers in a graph, under the names that their tensors have."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _NORMS and node.args[5]:
            raise UserError(f"{called}: was exported in training mode; call .eval() before torch.export")
        made = _layer(module, node)
        if made is not None:
            path, layer = made
            module.set_submodule(path, layer)
            with graph.inserting_before(node):
                call = graph.call_module(path, (node.args[0],))
            node.replace_all_uses_with(call)
            graph.erase_node(node)
        elif node.target in _FUNCTIONS and not node.kwargs:
            node.target = _FUNCTIONS[node.target]
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _layer(module: fx.GraphModule, node: fx.Node) -> tuple[str, nn.Module] | None:
    """The module that computes what a node does, and the path for it; None where it is no such layer."""
    arguments: Sequence[Any] = node.args
    if node.target in _NORMS:
        _, weight, bias, mean, variance, _, momentum, eps = arguments[:8]
        if not isinstance(mean, fx.Node) or mean.op != "get_attr":
            return None
        norm = nn.BatchNorm2d(len(_tensor(module, mean)), eps, momentum, affine=weight is not None)
        held = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
        return _path(mean), _filled(norm, module, held)
    weight = arguments[1] if len(arguments) > 1 else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    bias = arguments[2] if len(arguments) > 2 else None
    values = _tensor(module, weight)
    made: nn.Module
    if node.target == _ATEN.linear.default:
        made = nn.Linear(values.shape[1], values.shape[0], bias=bias is not None)
    elif node.target == _ATEN.conv2d.default:
        defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
        stride, padding, dilation, groups = [*arguments[3:], *defaults[max(len(arguments) - 3, 0) :]]
        sides, ins = (values.shape[2], values.shape[3]), values.shape[1] * groups
        settings: dict[str, Any] = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
        made = nn.Conv2d(ins, values.shape[0], sides, groups=groups, bias=bias is not None, **settings)
    else:
        return None
    return _path(weight), _filled(made, module, {"weight": weight, "bias": bias})


def _filled(layer: nn.Module, module: fx.GraphModule, held: dict[str, Any]) -> nn.Module:
    """The layer with the tensors of the graph's attributes, in evaluation mode."""
    for name, node in held.items():
        if node is not None:
            getattr(layer, name).data = _tensor(module, node).detach().clone().float()
    return layer.eval()


def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found


def _path(node: fx.Node) -> str:
    """Where the layer was that an attribute belongs to."""
    return str(node.target).rpartition(".")[0] or f"{node.target}_layer"


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
