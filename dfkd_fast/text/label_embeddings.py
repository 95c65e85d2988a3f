"""Class vectors: what the classes are called, as embeddings, or made up when there is no text.

`--text` names the source; `--label-embeddings` is another name of that flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd_fast.errors import UserError, one_of
from dfkd_fast.messages.notes import note
from dfkd_fast.rng import derive_seed
from dfkd_fast.text.class_names import first_synonym
from dfkd_fast.text.encoders import encode

PROMPTS = {
    "P1": "a class of a {name}",
    "P2": "a photo of a {name}",
    "P3": "a photo of a {index}",
    "released": "a image of {name}",
}
"""templates of NAYER's section 4.4 (its tables and MUSE's are made with P2), and the one in its released script. Of a
name with synonyms, "tench, Tinca tinca", the released one takes all, as the script does; others the first
"""

ENCODED = ("clip", "sbert")
"""sources that need the classes' names"""
MADE_UP = ("orthogonal", "one-hot")
"""sources that need no text"""
ENCODED_WIDTH = 512
"""numbers in a class vector of CLIP's text encoder, of which made-up ones have at least as many"""
MANY_CLASSES = 4096
"""beyond it vectors have fewer numbers than there are classes: K x K of them are gigabytes"""
SOURCES = (*ENCODED, "class-index", *MADE_UP, "file")
"""where class vectors can come from; `file` stands for a .safetensors file, which is named itself"""
CENTRES = "class-centre"
"""the source for methods that can do without: classes are where the teacher puts the first images of them"""


def label_embeddings(
    source: str,
    num_classes: int,
    *,
    names: Sequence[str] | None = None,
    prompt: str = "P2",
    model: str = "",
    dim: int = ENCODED_WIDTH,
) -> Tensor:
    """Embeddings (K, D) float32 for `--text SOURCE`.

    "clip", "sbert": of the class `names` in the template `prompt` (a name of `PROMPTS`, or text with {name} or
    {index}), by the encoder `model`; "class-index": CLIP's of "a photo of a 7", which needs no names. "orthogonal": K
    orthonormal directions of dimension max(dim, K), the same on every machine and run, which "class-centre" also
    starts from; for more than 4096 classes random directions of dimension `dim`, which it says. "one-hot": D = K;
    anything else: a safetensors file with one (K, D) tensor.
    Raises UserError for what is unavailable.
    """
    if source == "one-hot":
        if num_classes > MANY_CLASSES:
            note(f"--text one-hot: {num_classes:,} vectors of as many numbers take {4e-9 * num_classes**2:.1f} GB")
        return torch.eye(num_classes)
    if source in ("orthogonal", CENTRES):
        generator = torch.Generator().manual_seed(derive_seed(0, "label-embeddings"))
        if num_classes > MANY_CLASSES:
            note(f"--text {source}: for {num_classes:,} classes random directions of {dim} numbers, nearly orthogonal")
            return F.normalize(torch.randn(num_classes, dim, generator=generator))
        directions = torch.randn(max(dim, num_classes), num_classes, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(directions).Q.T.float().contiguous()
    if source == "class-index":
        return encode("clip", prompted(num_classes, None, "P3"), model=model, flag="--text class-index")
    if source == "file":
        raise UserError("--text file: name it, --text FILE.safetensors")
    if source in SOURCES:
        return encode(source, prompted(num_classes, names, prompt, flag=f"--text {source}"), model=model)
    return _read(Path(source), num_classes)


def origin(source: str) -> str:
    """What kind of vectors `--text SOURCE` gives: a name of `SOURCES` or `CENTRES`; `file` for a path."""
    return source if source in (*SOURCES, CENTRES) else "file"


def prompted(num_classes: int, names: Sequence[str] | None, prompt: str, *, flag: str = "--text") -> list[str]:
    """The template filled in for each class. Raises UserError for a template without a place, and for unknown names.

    Underscores in names become spaces, in the released template hyphens too. That takes names whole; others leave out
    synonyms behind a comma. What two classes share, a sentence and so a vector, is said.
    """
    template = PROMPTS.get(prompt, prompt)
    by_name = "{name}" in template
    if not by_name and "{index}" not in template:
        choices = one_of((*PROMPTS, "a text with {name} or {index}"))
        raise UserError(f"--prompt {prompt}: choose {choices}")
    if by_name and names is None:
        raise UserError(f"{flag}: what the classes are called is not known; give --class-names FILE or --prompt P3")
    spoken = [""] * num_classes if names is None else [_spoken(name, whole=prompt == "released") for name in names]
    sentences = [template.replace("{name}", name).replace("{index}", str(index)) for index, name in enumerate(spoken)]
    _say_what_is_taken(sentences, names or (), prompt=prompt, flag=flag)
    return sentences


def _spoken(name: str, *, whole: bool) -> str:
    return name.replace("_", " ").replace("-", " ") if whole else first_synonym(name).replace("_", " ")


def _say_what_is_taken(sentences: Sequence[str], names: Sequence[str], *, prompt: str, flag: str) -> None:
    """Print the first sentence, which part of a name with synonyms is in it, and which classes share one."""
    several = next((name for name in names if first_synonym(name) != name), None)
    parts = ""
    if several is not None and prompt == "released":
        parts = f"; names with all their synonyms ({several})"
    elif several is not None:
        parts = f"; of synonyms ({several}) the first; --prompt released takes all"
    note(f'{flag}: {len(sentences)} sentences, "{sentences[0]}" and so on{parts}')
    places: dict[str, list[int]] = {}
    for place, sentence in enumerate(sentences):
        places.setdefault(sentence, []).append(place)
    for sentence, same in places.items():
        if len(same) > 1:
            note(f'{flag}: classes {", ".join(map(str, same))} share a sentence and so a vector, "{sentence}"')


def _read(path: Path, num_classes: int) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    flag = f"--text {path}"
    if not path.is_file():
        sources = one_of(
            (*(name for name in SOURCES if name != "file"), CENTRES, "a .safetensors file of shape (K, D)")
        )
        raise UserError(f"{flag}: no such source or file; choose {sources}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
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
    if embeddings.dtype == torch.bool or embeddings.is_complex() or not embeddings.shape[1]:
        kind = str(embeddings.dtype).removeprefix("torch.")
        raise UserError(
            f"{flag}: {tuple(embeddings.shape)} of {kind}; expected ({num_classes}, D) numbers, D at least 1"
        )
    if not torch.isfinite(embeddings.float()).all():
        raise UserError(f"{flag}: holds values that are not finite")
    return embeddings.float()
