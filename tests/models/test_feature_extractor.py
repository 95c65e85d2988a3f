"""A tapped network is the network: same logits, same gradients, same BN updates, and what hooks would have seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.feature_extractor import FeatureExtractor

SHAPE = {"num_classes": 5, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
STAGES = [
    ("cnn_s", ("bn1", "conv2"), 32),
    ("resnet8", ("layer1", "layer2"), 64),
    ("wrn16_1", ("block1", "block3"), 64),
    ("vgg11", ("block1",), 512),
    ("resnet18", ("layer1", "layer3"), 512),
    ("tv:mobilenet_v2", ("features.3",), 1280),
]


def network(spec: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return load_model(spec, **SHAPE)[0].double()


def state_after(model: nn.Module) -> dict[str, Tensor]:
    grads = {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: value.clone() for name, value in model.state_dict().items()}, **grads}


@pytest.mark.parametrize(("spec", "maps", "width"), STAGES, ids=[spec for spec, _, _ in STAGES])
def test_equals_the_network_with_hooks(spec: str, maps: tuple[str, ...], width: int) -> None:
    """Logits, features, maps, weight gradients of a loss on all of them, and BN buffers, in training, exactly."""
    hooked, tapped = network(spec), FeatureExtractor(network(spec), maps=maps)
    view = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen: dict[str, Tensor] = {}
    for path in maps:
        hooked.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: seen.update({path: out}))
    linear = [module for module in hooked.modules() if isinstance(module, nn.Linear)][-1]
    linear.register_forward_hook(lambda _m, inputs, _out: seen.update(pooled=inputs[0]))
    torch.manual_seed(7)  # dropout
    logits = hooked(view)
    torch.manual_seed(7)
    out = tapped(view)
    assert torch.equal(out.logits, logits)
    assert out.features is not None
    assert out.features.shape[1] == width
    if not any(isinstance(module, nn.Dropout) for module in hooked.modules()):
        torch.testing.assert_close(F.adaptive_avg_pool2d(out.features, 1).flatten(1), seen["pooled"])
    assert list(out.maps) == list(maps)
    for path in maps:
        assert torch.equal(out.maps[path], seen[path])
    (logits.square().mean() + sum(seen[path].square().mean() for path in maps)).backward()
    (out.logits.square().mean() + sum(out.maps[path].square().mean() for path in maps)).backward()
    expected, found = state_after(hooked), state_after(tapped.model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_follows_the_network_it_was_given() -> None:
    """Mode, weights and buffers are the network's own: nothing was copied at the time of tracing."""
    model = network("cnn_s")
    tapped = FeatureExtractor(model)
    view = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        model.fc.bias.add_(1.0)
    model.eval()
    assert torch.equal(tapped(view).logits, model(view))
    assert [p.data_ptr() for p in tapped.parameters()] == [p.data_ptr() for p in model.parameters()]


def test_gradients_flow_into_maps_for_gradcam() -> None:
    tapped = FeatureExtractor(network("resnet8"), maps=("layer1", "layer2"))
    out = tapped(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    grads = torch.autograd.grad(out.logits[:, 0].sum(), list(out.maps.values()))
    assert all(grad.abs().max() > 0 for grad in grads)


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] if x.sum() > 0 else x.sum((1, 2, 3))[:, None]


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, 0, 0]


def test_networks_without_taps_are_named() -> None:
    with pytest.raises(UserError, match=r"^--student odd: torch.fx cannot trace it, and its features are needed \("):
        FeatureExtractor(Untraceable(), name="odd")
    with pytest.raises(UserError, match=r"^--student Unpooled: has no feature map"):
        FeatureExtractor(Unpooled())
    with pytest.raises(UserError, match=r"^--student cnn_s: has no module layer1 with one output; choose from conv1, "):
        FeatureExtractor(network("cnn_s"), maps=("layer1",), name="cnn_s")
