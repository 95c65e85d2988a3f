"""Representative calls of each kind of kernel, at sizes that no method has in particular: what is calibrated with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd_kernels import bn_act_moments, gather_augment
from dfkd_kernels.backend import pick

Call = Callable[[], Any]

CONVS = [  # images, side of the output, channels in, channels out, weights in a channel pair, groups, stride
    (64, 32, 3, 16, 9, 1, 1), (64, 32, 16, 16, 9, 1, 1), (48, 32, 3, 64, 9, 1, 1), (48, 32, 32, 32, 9, 1, 1),
    (16, 32, 64, 64, 9, 1, 1), (48, 16, 64, 64, 9, 1, 1), (48, 8, 64, 64, 9, 1, 1), (32, 16, 128, 128, 9, 1, 1),
    (64, 8, 128, 128, 9, 1, 1), (32, 8, 256, 256, 9, 1, 1), (32, 4, 512, 512, 9, 1, 1), (64, 4, 128, 128, 9, 1, 1),
    (8, 32, 128, 128, 9, 1, 1), (12, 32, 128, 64, 9, 1, 1), (48, 32, 64, 3, 9, 1, 1), (2, 112, 64, 64, 9, 1, 1),
    (4, 56, 64, 64, 9, 1, 1), (8, 14, 256, 256, 9, 1, 1), (8, 7, 512, 512, 9, 1, 1), (64, 16, 32, 32, 9, 1, 1),
    (64, 32, 32, 3, 9, 1, 1), (64, 32, 16, 3, 9, 1, 1), (64, 8, 32, 32, 9, 1, 1),
    (64, 16, 16, 32, 9, 1, 2), (64, 8, 32, 64, 9, 1, 2), (48, 8, 64, 128, 9, 1, 2), (48, 4, 128, 256, 9, 1, 2),
    (8, 28, 64, 128, 9, 1, 2), (16, 14, 128, 256, 9, 1, 2), (64, 16, 3, 32, 9, 1, 2),
    (64, 32, 16, 32, 1, 1, 1), (64, 16, 64, 128, 1, 1, 1), (64, 8, 128, 256, 1, 1, 1), (16, 14, 256, 1024, 1, 1, 1),
    (64, 16, 16, 32, 1, 1, 2), (64, 8, 32, 64, 1, 1, 2), (48, 4, 128, 256, 1, 1, 2), (64, 32, 4, 16, 1, 1, 1),
    (4, 112, 3, 64, 49, 1, 2), (16, 16, 64, 128, 16, 1, 2), (32, 8, 128, 128, 16, 1, 2), (8, 56, 64, 64, 16, 1, 2),
    (48, 16, 32, 64, 16, 1, 2), (48, 8, 64, 64, 16, 1, 2), (64, 16, 3, 32, 16, 1, 2),
    (16, 28, 96, 96, 9, 96, 1), (16, 14, 384, 384, 9, 384, 1),
]  # fmt: skip
PRODUCTS = [  # batches, m, n, k
    (1, 64, 512, 1000), (1, 64, 8192, 1000), (1, 1000, 8192, 64), (1, 128, 10, 128), (1, 512, 512, 512),
    (1, 64, 100, 512), (1, 100, 512, 64), (16, 64, 64, 64), (1, 1024, 1024, 1024),
]  # fmt: skip
SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22)
"""values of the tensors that traffic is timed with"""
PADDED = {1: (1, 0), 9: (3, 1), 16: (4, 1), 49: (7, 3)}
"""weights in a channel pair -> side of the kernel, padding"""


def conv_calls(shapes: Sequence[Any], device: str, dtype: torch.dtype, larger: int) -> Iterator[Callable[[], Call]]:
    """Each pass of each convolution."""
    for images, side, chans_in, chans_out, area, groups, stride in shapes:
        kernel, pad = PADDED[area]
        for mask in (None, (True, False, False), (False, True, False)):

            def make(
                shape: tuple[int, ...] = (images * larger, chans_in, side * stride, side * stride),
                weights: tuple[int, ...] = (chans_out, chans_in // groups, kernel, kernel),
                geometry: tuple[Any, ...] = ((stride,) * 2, (pad,) * 2, (1, 1)),
                groups: int = groups,
                mask: tuple[bool, ...] | None = mask,
            ) -> Call:
                options: dict[str, Any] = {"device": device, "dtype": dtype}
                x = torch.randn(shape, **options).to(memory_format=torch.channels_last)
                w = torch.randn(weights, **options).to(memory_format=torch.channels_last)
                if mask is None:
                    return lambda: torch.ops.aten.convolution(x, w, None, *geometry, False, (0, 0), groups)
                dy = torch.ops.aten.convolution(x, w, None, *geometry, False, (0, 0), groups)
                back = torch.ops.aten.convolution_backward
                return lambda: back(dy, x, w, None, *geometry, False, (0, 0), groups, mask)

            yield make


def product_calls(shapes: Sequence[Any], device: str, dtype: torch.dtype) -> Iterator[Callable[[], Call]]:
    for batch, m, n, k in shapes:

        def make(batch: int = batch, m: int = m, n: int = n, k: int = k) -> Call:
            left = torch.randn(batch, m, k, device=device, dtype=dtype)
            right = torch.randn(batch, k, n, device=device, dtype=dtype)
            if batch == 1:
                return lambda: torch.mm(left[0], right[0])
            return lambda: torch.bmm(left, right)

        yield make


def traffic_calls(size: int, device: str, dtype: torch.dtype) -> Iterator[Callable[[], Call]]:
    """Representatives of every kind that is no product, on maps of 16 pixels a side and 64 channels, or fewer."""
    chans = 64 if size >= 1 << 14 else 4
    images = max(1, size // (chans * 256))
    shape = (images, chans, 16, 16)

    def maps() -> Tensor:
        return torch.randn(shape, device=device).to(dtype=dtype, memory_format=torch.channels_last)

    def vector() -> Tensor:
        return torch.rand(chans, device=device) + 0.5

    yield lambda: _with(lambda x, y: x + y, maps(), maps())
    yield lambda: _with(lambda x: F.leaky_relu(x, 0.2), maps())
    yield lambda: _with(torch.mul, maps(), maps())
    yield lambda: _with(torch.sigmoid, maps())
    yield lambda: _with(
        lambda x: F.log_softmax(x, 1), torch.randn(max(1, size // 100), 100, device=device, dtype=dtype)
    )
    yield lambda: _with(lambda x: x.mean((2, 3)), maps())
    yield lambda: _with(torch.sum, maps())
    yield lambda: _with(torch.clone, maps())
    yield lambda: _with(lambda x: x.to(torch.float32 if dtype != torch.float32 else torch.bfloat16), maps())
    yield lambda: _with(lambda x: F.avg_pool2d(x, 2), maps())
    yield lambda: _with(lambda x: F.interpolate(x, scale_factor=2), maps())
    yield lambda: _with(lambda like: torch.randn(like.shape, device=device), maps())
    yield lambda: _batch_norm(maps(), vector(), is_backward=False)
    yield lambda: _batch_norm(maps(), vector(), is_backward=True)
    if pick("bn_act_moments", device, dtype) != "reference":
        yield lambda: _bn_act(maps(), vector(), is_backward=False)
        yield lambda: _bn_act(maps(), vector(), is_backward=True)
    yield lambda: _gather(max(1, images), chans, device, dtype)
    if dtype == torch.float32:
        yield lambda: _adam(size, device)
        yield lambda: _sgd(size, device)


def _with(call: Callable[..., Any], *tensors: Tensor) -> Call:
    return lambda: call(*tensors)


def _batch_norm(x: Tensor, weight: Tensor, *, is_backward: bool) -> Call:
    norm, back = torch.ops.aten.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    if not is_backward:
        return lambda: norm(x, weight, weight, mean, var, True, 0.1, 1e-5)
    _, save_mean, save_var = norm(x, weight, weight, mean, var, True, 0.1, 1e-5)
    return lambda: back(x, x, weight, mean, var, save_mean, save_var, True, 1e-5, (True, True, True))


def _bn_act(x: Tensor, vector: Tensor, *, is_backward: bool) -> Call:
    if not is_backward:
        return lambda: bn_act_moments(x, vector, vector, vector, vector, 1e-5)
    leaf = x.requires_grad_()
    y, _ = bn_act_moments(leaf, vector, vector, vector, vector, 1e-5)
    return lambda: torch.autograd.grad(y, leaf, x.detach(), retain_graph=True)


def _gather(images: int, chans: int, device: str, dtype: torch.dtype) -> Call:
    pool = torch.zeros(2 * images, 32, 32, 3, dtype=torch.uint8, device=device)
    rows = torch.randint(2 * images, (images,), device=device)
    shifts, flips = torch.zeros(images, 2, dtype=torch.int64, device=device), rows > images
    return lambda: gather_augment(pool, rows, shifts, flips, (0.5,) * 3, (0.2,) * 3, pad=4, dtype=dtype)


def _adam(size: int, device: str) -> Call:
    values = [[torch.rand(size // 4, device=device)] for _ in range(4)]
    step = [torch.ones((), device=device)]
    options = {"lr": 1e-3, "beta1": 0.5, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False}
    return lambda: torch._fused_adam_(*values, [], step, **options, maximize=False)


def _sgd(size: int, device: str) -> Call:
    values = [[torch.rand(size // 4, device=device)] for _ in range(3)]
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 1e-4}
    return lambda: torch._fused_sgd_(*values, **options, nesterov=False, maximize=False, is_first_step=False)
