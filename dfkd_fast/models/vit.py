"""Vision transformers (timm's) at low resolution: a window of their position embedding, patch tokens as a feature map.

MUSE (Tran et al., 2024, arXiv:2411.17046), supplement E: an image of fewer patches than the network was trained with
takes the position embeddings of a contiguous window of the grid, whose centre is drawn anew, most often in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.errors import UserError

DECAY = 0.1
"""MUSE's lambda, which is not published"""


class TokenWindow:
    """Where in a grid of position embeddings a smaller image lies: one place for a whole batch.

    `place`, uniform in [0, 1), is a tensor on the device, so that a captured step draws anew. Which window it stands
    for depends on the grid and the image's size: networks that share it see a batch in the same window.
    """

    def __init__(self, device: torch.device, *, is_led: bool = False, decay: float = DECAY) -> None:
        """`is_led`: a teacher draws the place at each call, and students only follow. `decay`: MUSE's lambda."""
        self.place = torch.zeros((), device=device)
        self.is_led, self.decay = is_led, decay

    @torch.no_grad()
    def draw(self) -> None:
        """A new place, from the device's default generator."""
        self.place.copy_(torch.rand_like(self.place))

    def indices(self, grid: Size, size: Size) -> Tensor:
        """Rows of the position embedding of a network of `grid` patches that an image of `size` takes, row by row:
        (rows x columns,) int64.
        """
        (_, across), (rows, columns), device = ImageSize.of(grid), ImageSize.of(size), self.place.device
        chances = window_chances(grid, size, self.decay, device=device)
        chosen = (chances.flatten().cumsum(0) <= self.place).sum().clamp_max(chances.numel() - 1)
        row, column = chosen // chances.shape[1], chosen % chances.shape[1]
        down = (row + torch.arange(rows, device=device))[:, None]
        return (down * across + column + torch.arange(columns, device=device)).flatten()


def window_chances(grid: Size, size: Size, decay: float, *, device: torch.device | None = None) -> Tensor:
    """The chance of each window, by the row and column of its first patch: (grid - size + 1)^2, together 1.

    P(r, c) ~ 1 / (1 + decay ((r - m)^2 + (c - m)^2)) for the window's centre, counted from 1, and the middle m = grid
    // 2, of rows and of columns. For 7 of 14 patches, as in the paper, centres are 4 to 11 and m is 7.
    """
    rows, columns = (
        (torch.arange(whole - part + 1, device=device) + part // 2 + 1 - whole // 2).square()
        for whole, part in zip(ImageSize.of(grid), ImageSize.of(size), strict=True)
    )
    weights = 1 / (1 + decay * (rows[:, None] + columns))
    return weights / weights.sum()


class Tokens(NamedTuple):
    """What a vision transformer hands out."""

    logits: Tensor
    """(B, K)"""
    features: Tensor
    """patch tokens behind the final norm, as a map (B, D, h, w)"""
    embedding: Tensor
    """(B, D): what the classifier reads, the class token or what the network pools"""


def is_vit(model: nn.Module) -> bool:
    """Whether this is timm's plain vision transformer, or DeiT with a distillation token: what `see` runs."""
    kind = type(model)
    known = {"timm.models.vision_transformer": "VisionTransformer", "timm.models.deit": "VisionTransformerDistilled"}
    plain = kind.__name__ in ("VisionTransformer", known.get(kind.__module__))
    return plain and kind.__module__ in known and type(model.patch_embed).__name__ == "PatchEmbed"


def see(model: nn.Module, view: Tensor, window: TokenWindow, *, draws: bool) -> Tokens:
    """Run a vision transformer on normalised images (B, C, H, W) of its own size or smaller, H and W multiples of its
    patches' sides.

    At its own size this is the network itself; below, it sees the images in `window`, with `draws` in a new one.
    """
    vit: Any = model
    patches = vit.patch_embed.proj(view.to(vit.patch_embed.proj.weight.dtype))
    size = ImageSize(*patches.shape[-2:])
    tokens = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
    special = (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token)
    prefix = [token.expand(len(view), -1, -1) for token in special if token is not None]
    positions, apart = _positions(vit, size, window, draws=draws), vit.no_embed_class
    tokens = torch.cat([*prefix, tokens + positions if apart else tokens], dim=1)
    tokens = vit.pos_drop(tokens if apart else tokens + positions)
    tokens = vit.norm(vit.blocks(vit.norm_pre(vit.patch_drop(tokens))))
    features = tokens[:, -size.area :].transpose(1, 2).unflatten(2, size)
    features = features.to(vit.head.weight.dtype)  # autocast computes norms in float32
    return Tokens(vit.forward_head(tokens), features, vit.forward_head(tokens, pre_logits=True))


def _positions(vit: Any, size: ImageSize, window: TokenWindow, *, draws: bool) -> Tensor:
    """The position embeddings of so many patches, behind those of the special tokens where they have some."""
    embedding: Tensor | None = vit.pos_embed
    grid = ImageSize(*vit.patch_embed.grid_size)
    if embedding is None:
        return vit.cls_token.new_zeros(())
    if size == grid:
        return embedding
    if draws:
        window.draw()
    count = embedding.shape[1] - grid.area
    inside = embedding[:, count:].index_select(1, window.indices(grid, size))
    return torch.cat([embedding[:, :count], inside], dim=1)


def head_weights(model: nn.Module) -> Tensor | None:
    """The classifier's weight (K, D), which class activation maps multiply patch tokens with; of DeiT's two heads, the
    mean. None where another norm or an attention lies between.
    """
    vit: Any = model
    if not isinstance(vit.head, nn.Linear) or vit.attn_pool is not None or not isinstance(vit.fc_norm, nn.Identity):
        return None
    second = getattr(vit, "head_dist", None)
    weight: Tensor = vit.head.weight
    return weight if second is None else (weight + second.weight) / 2


def check_size(model: nn.Module, size: ImageSize, name: str) -> None:
    """Raise UserError where a network cannot see images of `size`."""
    vit: Any = model
    for given, side, grid in zip(size, vit.patch_embed.patch_size, vit.patch_embed.grid_size, strict=True):
        if given % side or not 0 < given <= side * grid:
            sizes = f"{side} to {side * grid} pixels in steps of {side}" if grid > 1 else f"a multiple of {side} pixels"
            raise UserError(f"{name}: sees images of {sizes}, not of {size}")


class FrozenVit(nn.Module):
    """A frozen vision transformer that answers as `dfkd_kernels.FrozenTeacher` does: it has no BatchNorm, and no maps
    but its patch tokens.
    """

    targets: tuple[tuple[Tensor, Tensor], ...] = ()
    norm_inputs: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, window: TokenWindow, *, dtype: torch.dtype) -> None:
        """`model` is taken over: eval, no weight gradients, stored in `dtype`."""
        super().__init__()
        self.model, self.window = model.eval().requires_grad_(False).to(dtype), window

    @property
    def class_weights(self) -> Tensor | None:
        """(K, D), or None."""
        return head_weights(self.model)

    def forward(self, view: Tensor) -> Tokens:
        """Normalised images (B, C, H, W) -> `Tokens`, in a window that is drawn anew."""
        return see(self.model, view, self.window, draws=True)

    def prepare(self, *, maps: Sequence[str] = (), moments: bool = True) -> None:
        """Nothing to prepare. Raises ValueError for maps."""
        if maps:
            raise ValueError(f"maps {maps[0]!r}: a vision transformer hands out its patch tokens alone")
