"""Text encoders: CLIP and SBERT, imported and fetched only when they are asked for, and each text encoded only once."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.files import cache
from dfkd_fast.files.write import make_folder, write_file
from dfkd_fast.messages.terminal import show
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.models.weights.header import HEADER, check_seal, sealed_header

DEFAULT_MODELS = {"clip": "openai/clip-vit-base-patch32", "sbert": "sentence-transformers/all-MiniLM-L6-v2"}
"""what `--text clip` and `--text sbert` take: CLIP ViT-B/32 is NAYER's and MUSE's; no paper names its SBERT"""
OPEN_CLIP_DEFAULT = "ViT-B-32-quickgelu/openai"
"""the same CLIP weights for open_clip"""
Encoder = Callable[[list[str]], Tensor]
"""texts -> embeddings (B, D)"""

_BATCH = 256
_OF = "embeddings_of"
"""entry of a kept file's header: the name that encoder, texts and model give it"""


def encode(encoder: str, texts: Sequence[str], *, model: str = "", flag: str = "") -> Tensor:
    """Embeddings (len(texts), D) float32, not normalised, by `clip` or `sbert`.

    `model` is a name on the Hugging Face hub or a local folder; `open_clip:ARCHITECTURE/WEIGHTS` asks for open_clip,
    which also serves where transformers is not installed. Kept below `cache_folder()` under a hash of texts and model.
    Raises UserError, naming `flag`, for a library that is missing and for a model that cannot be had, with what works
    offline.
    """
    model = model or DEFAULT_MODELS[encoder]
    file = cache_folder() / f"{encoder}-{_digest(encoder, texts, model)}.safetensors"
    kept = _kept(file)
    if kept is not None:
        return kept
    run = _load(encoder, model, flag or f"--text {encoder}")
    with torch.inference_mode():
        found = [run(list(texts[start : start + _BATCH])).float().cpu() for start in range(0, len(texts), _BATCH)]
    embeddings = torch.cat(found).clone()  # a plain tensor again
    _keep(file, embeddings)
    return embeddings


def cache_folder() -> Path:
    """Where embeddings are kept: `text` below the cache (`dfkd_fast.files.cache`)."""
    return cache.cache_folder("text")


def _digest(encoder: str, texts: Sequence[str], model: str) -> str:
    """What decides the embeddings. A local folder counts with the sizes and dates of its files."""
    files = sorted(path for path in Path(model).rglob("*") if path.is_file()) if Path(model).is_dir() else []
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return sha256(json.dumps([encoder, model, stamps, list(texts)]).encode()).hexdigest()[:16]


def _kept(file: Path) -> Tensor | None:
    """What was kept, checked; None where there is nothing, or nothing whole, which is said."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            embeddings, about = content.get_tensor("embeddings"), content.metadata() or {}
        check_seal({"embeddings": embeddings}, about, what="class vectors")
        written = json.loads(about.get(HEADER, "{}")).get(_OF, file.stem)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, UserError):
        show(f"{file}: damaged, or may not be read; the texts are encoded anew")
        return None
    if written != file.stem:
        show(f"{file}: holds other vectors ({written}); the texts are encoded anew")
        return None
    return embeddings


def _keep(file: Path, embeddings: Tensor) -> None:
    from safetensors.torch import save

    tensors = {"embeddings": embeddings}
    try:
        make_folder(file.parent)
        write_file(file, save(tensors, sealed_header(tensors, {_OF: file.stem})))
    except OSError as error:
        raise UserError(f"DFKD_FAST_CACHE {file.parent}: cannot be written ({error.strerror or error})") from None


def _load(encoder: str, model: str, flag: str) -> Encoder:
    """The encoder, from whichever library serves."""
    without = _without(model)
    name = "sentence_transformers" if encoder == "sbert" else "transformers"
    if model.startswith("open_clip:"):
        name, model = "open_clip", model.removeprefix("open_clip:")
    library = _import(name)
    if library is None and model == DEFAULT_MODELS["clip"] and (library := _import("open_clip")) is not None:
        name, model = "open_clip", OPEN_CLIP_DEFAULT
    if library is None:
        raise UserError(f'{flag}: needs {name}; pip install "dfkd-fast[text]"; {without}')
    load = {"sentence_transformers": _sbert, "transformers": _clip, "open_clip": _open_clip}[name]
    try:
        return load(library, model)
    except Exception as error:  # hubs and libraries fail in as many ways as there are networks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{flag}: {model} could not be loaded ({reason}); {without}") from error


def _without(model: str) -> str:
    """What can be done where a model cannot be had."""
    fetch = "" if model.startswith("open_clip:") else f" (elsewhere: hf download {model} --local-dir FOLDER)"
    return (
        f"without a network give --text-model FOLDER with a copy of it{fetch}, a .safetensors file of vectors "
        "(--text FILE), or, without label text, --text orthogonal or one-hot"
    )


def _import(name: str) -> Any | None:
    ensure_importable()  # they all import torchvision
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _clip(transformers: Any, model: str) -> Encoder:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.CLIPTextModelWithProjection.from_pretrained(model).eval()

    def run(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        embeddings: Tensor = network(**tokens).text_embeds
        return embeddings

    return run


def _open_clip(open_clip: Any, model: str) -> Encoder:
    architecture, _, weights = (model, "", None) if model.startswith("hf-hub:") else model.partition("/")
    if weights == "":
        raise ValueError("no weights named: open_clip would draw them at random; see open_clip.list_pretrained()")
    network = open_clip.create_model(architecture, pretrained=weights).eval()
    tokenizer = open_clip.get_tokenizer(architecture)

    def run(texts: list[str]) -> Tensor:
        embeddings: Tensor = network.encode_text(tokenizer(texts))
        return embeddings

    return run


def _sbert(sentence_transformers: Any, model: str) -> Encoder:
    network = sentence_transformers.SentenceTransformer(model, device="cpu")

    def run(texts: list[str]) -> Tensor:
        embeddings: Tensor = network.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return embeddings

    return run
