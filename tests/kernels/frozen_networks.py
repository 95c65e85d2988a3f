"""Networks to freeze, and one step of each: frozen, and as the papers' code gets it with forward hooks."""

import torch
import torch.nn.functional as F
from torch import nn

from dfkd_fast.models import cifar
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_kernels import bn_stat_loss

ensure_importable()
import timm  # noqa: E402 (imports torchvision)
import torchvision  # noqa: E402


def small_classifier(vgg: nn.Module) -> nn.Module:
    """The same three layers, without their 100 million weights."""
    vgg.classifier = nn.Sequential(nn.Linear(25088, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))
    return vgg


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "vgg11_bn": lambda: small_classifier(torchvision.models.vgg11_bn(num_classes=10, init_weights=False)),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=10),
    "timm:resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "timm:efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=10),
    "cifar:resnet18": lambda: cifar.resnet18(num_classes=10),
    "cifar:wrn16_1": lambda: cifar.wrn16_1(num_classes=10),
    "cifar:vgg11": lambda: cifar.vgg11(num_classes=10),
}
# (operators that could not be fused, feature map, whether class weights were found), as the networks' papers imply:
# only a residual branch's own BatchNorm, or one that nothing follows, stays alone
EXPECTED = {
    "resnet18": (3, (512, 1, 1), True),
    "resnet50": (4, (2048, 1, 1), True),
    "mobilenet_v2": (7, (1280, 1, 1), True),
    "vgg11_bn": (0, (512, 1, 1), False),  # its classifier has three layers
    "densenet121": (0, (1024, 1, 1), True),
    "timm:resnet18": (3, (512, 1, 1), True),
    "timm:efficientnet_b0": (7, (1280, 1, 1), True),
    "cifar:resnet18": (3, (512, 4, 4), True),
    "cifar:wrn16_1": (0, (64, 8, 8), True),
    "cifar:vgg11": (0, (512, 4, 4), True),
}


def trained_looking(network: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters of a network that has seen data: none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
    return network.eval()


def images(batch: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand((batch, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(dtype)


def hooked_step(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """logits, BN loss and input gradient as the papers' code gets them: forward hooks on every BatchNorm2d."""
    terms = []

    def record(module, inputs, output):
        mean = inputs[0].mean((0, 2, 3))
        var = inputs[0].var((0, 2, 3), unbiased=False)
        terms.append(torch.norm(module.running_mean - mean) + torch.norm(module.running_var - var))

    hooks = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    x = x.clone().requires_grad_()
    logits = network(x)
    for hook in hooks:
        hook.remove()
    loss = sum(terms)
    (gradient,) = torch.autograd.grad(loss + objective(logits), x)
    return logits.detach(), loss.detach(), gradient


def frozen_step(teacher: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_()
    logits, _, moments = teacher(x)
    loss = bn_stat_loss(moments, teacher.targets)
    (gradient,) = torch.autograd.grad(loss + objective(logits), x)
    return logits.detach(), loss.detach(), gradient


def objective(logits: torch.Tensor) -> torch.Tensor:
    return 10.0 * F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, logits.argmax(1))


def assert_same(ours: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], tolerance: float = 1e-10) -> None:
    for actual, exact in zip(ours, expected, strict=True):
        assert (actual - exact).abs().max() <= tolerance * exact.abs().max()


class Untraceable(nn.Module):
    """Branches on a value, which torch.fx cannot follow, and calls its layers in another order than it holds them."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.unused = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        if x.mean() > -1e9:
            x = self.stage(x)
        return self.head(self.pool(x).flatten(1))
