"""Label embeddings: one vector per class, from a file or made up when there is no text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.rng import fold

CHOICES = ("orthogonal", "one-hot")


def label_embeddings(source: str, num_classes: int, *, dim: int = 512) -> Tensor:
    """Embeddings (K, D) float32, named by `--label-embeddings`.

    "orthogonal": K orthonormal directions of dimension max(dim, K), the same on every machine and run; "one-hot": D =
    K; anything else: a safetensors file with one (K, D) tensor. Raises UserError for a file that is not that.
    """
    if source == "one-hot":
        return torch.eye(num_classes)
    if source == "orthogonal":
        generator = torch.Generator().manual_seed(fold(0, "label-embeddings"))
        directions = torch.randn(max(dim, num_classes), num_classes, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(directions).Q.T.float().contiguous()
    return _read(Path(source), num_classes)


def _read(path: Path, num_classes: int) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    flag = f"--label-embeddings {path}"
    if not path.is_file():
        raise UserError(f"{flag}: no such file; choose {', '.join(CHOICES)} or a .safetensors file of shape (K, D)")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{flag}: not a safetensors file ({error})") from None
    if len(tensors) != 1:
        raise UserError(
            f"{flag}: holds {len(tensors)} tensors ({', '.join(sorted(tensors))}); it must hold one, (K, D)"
        )
    (embeddings,) = tensors.values()
    if embeddings.ndim != 2 or len(embeddings) != num_classes:
        raise UserError(
            f"{flag}: shape {tuple(embeddings.shape)}; the teacher has {num_classes} classes, so ({num_classes}, D)"
        )
    if not torch.isfinite(embeddings).all():
        raise UserError(f"{flag}: holds values that are not finite")
    return embeddings.float()
