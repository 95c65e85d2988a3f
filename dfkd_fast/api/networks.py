"""Students in Python: loading one, judging it, exporting it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from dfkd_fast.api.settings import spec_of
from dfkd_fast.config.sections import SavedNetworkInput
from dfkd_fast.data.splits import load_test_split
from dfkd_fast.data.stream import Decoding
from dfkd_fast.deploy.check import real_images, synthetic_images
from dfkd_fast.deploy.export import export as export_network
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.normalized import NormalizedNetwork
from dfkd_fast.training.evaluate import Evaluation, as_expected
from dfkd_fast.training.evaluate import evaluate as evaluate_network
from dfkd_fast.training.saved import SavedNetwork, load_saved


def load_student(path: str | Path, *, network: nn.Module | str | None = None) -> NormalizedNetwork:
    """The student of a run folder, or the network in a file, on the CPU and in evaluation mode.

    Takes float images (B, C, H, W) in [0, 1], which it normalises itself, and answers with logits (B, K); `.network` is
    the network alone, `.info` what it expects, class names included. Of a run that has not ended it is the newest
    checkpoint's. `network`: what is filled, where the file does not say or it was given as a module: a module, or a
    name as `--student` takes it.

    Raises UserError for whatever cannot be read, is damaged, or has not been taught yet.
    """
    return _normalized(_saved(path, network))


def evaluate(
    network: nn.Module | str | Path,
    test: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    batch_size: int = 512,
    device: str = "auto",
) -> Evaluation:
    """Accuracies of a network on real images, in float32: `top1`, `top5`, `per_class`, `predictions`.

    network: a run folder, a file, what `load_student` gives, or a module that maps normalised images to logits, of
        which mean, std (one value a channel, for pixels in [0, 1]) and image_size must then be said.
    test: "digits", or a path as `--data` takes it.

    Raises UserError where classes or sizes of images and network differ.
    """
    if isinstance(network, NormalizedNetwork):
        model, info = network.network, network.info
    elif isinstance(network, nn.Module):
        size: Any = image_size if isinstance(image_size, int | None) else tuple(image_size)
        stated = {"mean": mean and tuple(mean), "std": std and tuple(std), "num_classes": num_classes}
        model, info = load_model(spec_of(network), image_size=size, **cast(Any, stated), flag="network")
    else:
        model, info, _, _ = _saved(network, None)
    runtime = make_runtime(device=device, precision="fp32")
    found = load_test_split(
        test,
        image_size=info.image_size,
        decoding=Decoding(interpolation=info.interpolation),
        device=runtime.device,
        channels=info.in_chans,
    )
    images = as_expected(found, info, None).images
    return evaluate_network(runtime.place(model), images, info=info, runtime=runtime, batch_size=batch_size)


def export(
    network: NormalizedNetwork | str | Path,
    out: str | Path,
    *,
    to: str,
    test: str | Path | None = None,
    opset: int = 18,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Write a student as `out` in the format `to` (onnx, torch-export, torchscript, safetensors), and `<out>.json`
    beside it; returns what that file says. As `dfkd-fast export` (docs/export.md), checks included.

    network: a run folder, a file, or what `load_student` gives. test: real images that are compared, too.

    Raises UserError where the exported network answers otherwise; then nothing is written.
    """
    if isinstance(network, NormalizedNetwork):
        saved = SavedNetwork(network.network, network.info, "a network in memory", None)
    else:
        saved = _saved(network, None)
    images = [synthetic_images(saved.info, saved.run)]
    images += [] if test is None else [real_images(str(test), saved.info, 1000)]
    return export_network(saved, to, Path(out), tuple(images), opset=opset, tolerance=tolerance).about


def _saved(path: str | Path, network: nn.Module | str | None) -> SavedNetwork:
    spec = None if network is None else spec_of(network)
    return load_saved(Path(path), SavedNetworkInput(student=spec), flag="load_student")


def _normalized(saved: SavedNetwork) -> NormalizedNetwork:
    return NormalizedNetwork(saved.model, saved.info).eval()
