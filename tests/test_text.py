"""Class vectors: sources, prompts, names, the cache, and what is said when there is no network or no library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dfkd_fast.catalog import METHODS, presets
from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.wordnet import wordnet_words
from dfkd_fast.errors import UserError
from dfkd_fast.messages.notes import note
from dfkd_fast.models.info import data_set_source
from dfkd_fast.models.torchvision_cpu import ensure_importable, imagenet_categories
from dfkd_fast.text.class_names import first_synonym, read_class_names, spoken_names, with_synonyms
from dfkd_fast.text.encoders import cache_folder, encode
from dfkd_fast.text.label_embeddings import CENTRES, PROMPTS, label_embeddings, origin, prompted
from dfkd_fast.training.assemble import class_vectors, load_method

NAMES = ("ice_cream", "T-shirt", "cat")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    note.cache_clear()  # another test may have said the same


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for transformers with the interface that is used; returns the texts that it was asked to encode."""
    asked: list[str] = []

    class Tokenizer:
        def __call__(self, texts: list[str], *, padding: bool, truncation: bool, return_tensors: str) -> dict[str, Any]:
            assert (padding, truncation, return_tensors) == (True, True, "pt")
            return {"texts": texts}

    class Network:
        def eval(self) -> Network:
            return self

        def __call__(self, texts: list[str]) -> SimpleNamespace:
            assert not torch.is_grad_enabled()
            asked.extend(texts)
            return SimpleNamespace(text_embeds=torch.tensor([[float(len(text)), 1.0] for text in texts]).half())

    def offered(made: object) -> SimpleNamespace:
        def from_pretrained(model: str) -> object:
            if model == "no/such":
                raise OSError("We couldn't connect to the hub.\nIs there a network?")
            return made

        return SimpleNamespace(from_pretrained=from_pretrained)

    library = SimpleNamespace(AutoTokenizer=offered(Tokenizer()), CLIPTextModelWithProjection=offered(Network()))
    monkeypatch.setitem(sys.modules, "transformers", library)
    return asked


def complaint(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_made_up_vectors() -> None:
    directions = label_embeddings("orthogonal", 7, dim=16)
    assert directions.shape == (7, 16)
    torch.testing.assert_close(directions @ directions.T, torch.eye(7))
    assert torch.equal(directions, label_embeddings("orthogonal", 7, dim=16))
    assert torch.equal(directions, label_embeddings(CENTRES, 7, dim=16))
    assert torch.equal(label_embeddings("one-hot", 4), torch.eye(4))
    assert label_embeddings("orthogonal", 20, dim=16).shape == (20, 20)


def test_many_classes_get_fewer_numbers_than_classes(monkeypatch, capsys) -> None:
    """Which is said; up to the limit nothing changes, and one-hot vectors are what they are called."""
    monkeypatch.setattr("dfkd_fast.text.label_embeddings.MANY_CLASSES", 60)
    assert label_embeddings("orthogonal", 60, dim=50).shape == (60, 60)
    assert label_embeddings("one-hot", 60).shape == (60, 60)
    assert not "".join(capsys.readouterr())
    for source in ("orthogonal", CENTRES):
        many = label_embeddings(source, 61, dim=50)
        assert many.shape == (61, 50)
        torch.testing.assert_close(many.norm(dim=1), torch.ones(61))
        assert (many @ many.T - torch.eye(61)).abs().max() < 0.7
        assert torch.equal(many, label_embeddings(source, 61, dim=50))
        assert f"--text {source}: for 61 classes random directions of 50 numbers" in "".join(capsys.readouterr())
    assert label_embeddings("one-hot", 61).shape == (61, 61)
    assert "--text one-hot: 61 vectors" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("P1", ["a class of a ice cream", "a class of a T-shirt", "a class of a cat"]),
        ("P2", ["a photo of a ice cream", "a photo of a T-shirt", "a photo of a cat"]),
        ("P3", ["a photo of a 0", "a photo of a 1", "a photo of a 2"]),
        ("released", ["a image of ice cream", "a image of T shirt", "a image of cat"]),
        ("{index}: {name}", ["0: ice cream", "1: T-shirt", "2: cat"]),
    ],
)
def test_prompts(prompt: str, expected: list[str]) -> None:
    assert prompted(3, NAMES, prompt) == expected


def test_prompts_without_names() -> None:
    assert prompted(2, None, "P3") == ["a photo of a 0", "a photo of a 1"]
    assert complaint(lambda: prompted(2, None, "P2", flag="--text clip")) == (
        "--text clip: what the classes are called is not known; give --class-names FILE or --prompt P3"
    )
    choices = "choose P1, P2, P3, released or a text with {name} or {index}"
    assert complaint(lambda: prompted(2, NAMES[:2], "a dog")) == f"--prompt a dog: {choices}"
    assert set(PROMPTS) == {"P1", "P2", "P3", "released"}


def test_clip_vectors_are_raw_float32_and_encoded_once(hub: list[str]) -> None:
    found = label_embeddings("clip", 3, names=NAMES)
    assert hub == prompted(3, NAMES, "P2")
    assert torch.equal(found, torch.tensor([[22.0, 1.0], [20.0, 1.0], [16.0, 1.0]]))
    assert found.dtype == torch.float32
    assert torch.equal(label_embeddings("clip", 3, names=NAMES), found)
    assert len(hub) == 3, "the second time comes from the cache"
    assert [file.suffix for file in cache_folder().iterdir()] == [".safetensors"]
    label_embeddings("clip", 3, names=NAMES, prompt="P1")
    label_embeddings("clip", 3, names=NAMES, model="another/model")
    assert len(hub) == 9, "other texts and other models are not in it"


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "zero", "swapped"])
def test_kept_vectors_that_are_damaged_are_made_again(
    hub: list[str], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label_embeddings("clip", 3, names=["a", "b", "c"])
    (other,) = cache_folder().iterdir()
    swapped = other.read_bytes()
    other.unlink()
    hub.clear()
    found = label_embeddings("clip", 3, names=NAMES)
    (file,) = cache_folder().iterdir()
    content = bytearray(file.read_bytes())
    content[-2] ^= 4
    broken = {"flip": content, "cut": content[:-9], "empty": b"", "zero": bytes(len(content)), "swapped": swapped}
    file.write_bytes(broken[how])
    assert torch.equal(label_embeddings("clip", 3, names=NAMES), found)
    assert len(hub) == 6
    words = f"{file}: holds other vectors ({other.stem})" if how == "swapped" else f"{file}: damaged"
    assert words in capsys.readouterr().out
    assert torch.equal(label_embeddings("clip", 3, names=NAMES), found)
    assert len(hub) == 6


def test_class_index_needs_no_names(hub: list[str]) -> None:
    label_embeddings("class-index", 2)
    assert hub == ["a photo of a 0", "a photo of a 1"]


def test_many_texts_are_encoded_in_batches(hub: list[str]) -> None:
    found = encode("clip", [str(number) for number in range(600)])
    assert found[:, 0].tolist() == [1.0] * 10 + [2.0] * 90 + [3.0] * 500
    assert len(hub) == 600


def test_a_changed_local_model_is_encoded_anew(hub: list[str], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"12")
    encode("clip", ["a"], model=str(model))
    encode("clip", ["a"], model=str(model))
    assert len(hub) == 1
    (model / "weights").write_bytes(b"123")
    encode("clip", ["a"], model=str(model))
    assert len(hub) == 2


def offline(model: str) -> str:
    return (
        "without a network give --text-model FOLDER with a copy of it "
        f"(elsewhere: hf download {model} --local-dir FOLDER), a .safetensors file of vectors (--text FILE), or, "
        "without label text, --text orthogonal or one-hot"
    )


@pytest.mark.usefixtures("hub")
def test_without_a_network_the_ways_out_are_named() -> None:
    line = complaint(lambda: encode("clip", ["a"], model="no/such"))
    assert line == f"--text clip: no/such could not be loaded (We couldn't connect to the hub.); {offline('no/such')}"
    assert not cache_folder().exists()


@pytest.mark.parametrize(("encoder", "library"), [("clip", "transformers"), ("sbert", "sentence_transformers")])
def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, encoder: str, library: str) -> None:
    models = {"clip": "openai/clip-vit-base-patch32", "sbert": "sentence-transformers/all-MiniLM-L6-v2"}
    for name in ("transformers", "open_clip", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # import then raises ImportError
    line = complaint(lambda: encode(encoder, ["a"]))
    assert line == f'--text {encoder}: needs {library}; pip install "dfkd-fast[text]"; {offline(models[encoder])}'
    assert complaint(lambda: label_embeddings("class-index", 2)).startswith("--text class-index: needs transformers; ")


def test_open_clip_serves_where_transformers_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str | None]] = []

    class Network:
        def eval(self) -> Network:
            return self

        def encode_text(self, tokens: Tensor) -> Tensor:
            return tokens * 2

    def create_model(architecture: str, *, pretrained: str | None) -> Network:
        made.append((architecture, pretrained))
        return Network()

    def get_tokenizer(_architecture: str) -> Callable[[list[str]], Tensor]:
        return lambda texts: torch.tensor([[len(text)] for text in texts])

    monkeypatch.setitem(sys.modules, "transformers", None)
    library = SimpleNamespace(create_model=create_model, get_tokenizer=get_tokenizer)
    monkeypatch.setitem(sys.modules, "open_clip", library)
    assert encode("clip", ["abc", "d"]).tolist() == [[6.0], [2.0]]
    encode("clip", ["abc"], model="open_clip:ViT-L-14/laion")
    encode("clip", ["abc"], model="open_clip:hf-hub:some/one")
    assert made == [("ViT-B-32-quickgelu", "openai"), ("ViT-L-14", "laion"), ("hf-hub:some/one", None)]
    line = complaint(lambda: encode("clip", ["abc"], model="open_clip:ViT-L-14"))
    assert line.startswith("--text clip: ViT-L-14 could not be loaded (no weights named: ")


def test_a_real_clip_from_a_local_folder(tmp_path: Path) -> None:
    """The encoder itself, at toy size with random weights: the projected feature of the text, alone or in a batch."""
    ensure_importable()
    transformers = pytest.importorskip("transformers", reason='needs pip install "dfkd-fast[text]"')
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(vocab_size=len(words), projection_dim=8, **sizes, **ends)
    network = transformers.CLIPTextModelWithProjection(config).eval()
    network.save_pretrained(tmp_path)
    found = encode("clip", ["a photo of a cat", "dog"], model=str(tmp_path))
    alone = network(**tokenizer(["dog"], return_tensors="pt")).text_embeds
    torch.testing.assert_close(found[1:], alone)


def test_sbert(monkeypatch: pytest.MonkeyPatch) -> None:
    class SentenceTransformer:
        def __init__(self, model: str, *, device: str) -> None:
            assert (model, device) == ("sentence-transformers/all-MiniLM-L6-v2", "cpu")

        def encode(self, texts: list[str], *, convert_to_tensor: bool, show_progress_bar: bool) -> Tensor:
            assert convert_to_tensor
            assert not show_progress_bar
            return torch.tensor([[len(text)] for text in texts])

    library = SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    assert label_embeddings("sbert", 3, names=NAMES, prompt="{name}").tolist() == [[9.0], [7.0], [3.0]]


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "vectors.safetensors"
    save_file({"any": torch.arange(6).view(2, 3)}, file)
    assert torch.equal(label_embeddings(str(file), 2), torch.arange(6.0).view(2, 3))
    assert complaint(lambda: label_embeddings(str(file), 3)) == (
        f"--text {file}: shape (2, 3); the teacher has 3 classes, so (3, D)"
    )
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, file)
    assert "holds 2 tensors (a, b)" in complaint(lambda: label_embeddings(str(file), 2))
    save_file({"a": torch.full((2, 3), torch.nan)}, file)
    assert "not finite" in complaint(lambda: label_embeddings(str(file), 2))
    for empty_or_odd, words in {
        torch.zeros(2, 0): "(2, 0) of float32; expected (2, D) numbers, D at least 1",
        torch.zeros(2, 3, dtype=torch.complex64): "(2, 3) of complex64",
        torch.zeros(2, 3, dtype=torch.bool): "(2, 3) of bool",
        torch.full((2, 3), 1e300, dtype=torch.float64): "not finite",
    }.items():
        save_file({"e": empty_or_odd}, file)
        assert words in complaint(lambda: label_embeddings(str(file), 2))
    file.write_bytes(b"no")
    assert "not a safetensors file" in complaint(lambda: label_embeddings(str(file), 2))
    assert complaint(lambda: label_embeddings("clipp", 2)).startswith("--text clipp: no such source or file; ")
    assert complaint(lambda: label_embeddings("file", 2)) == "--text file: name it, --text FILE.safetensors"


def test_origin() -> None:
    sources = ("clip", "sbert", "class-index", "orthogonal", "one-hot", "class-centre", "x.safetensors")
    assert [origin(source) for source in sources] == [*sources[:-1], "file"]


def test_class_names_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat \n\ndog\n")
    assert read_class_names(file, 2) == ("cat", "dog")
    assert complaint(lambda: read_class_names(file, 3)) == (
        f"--class-names {file}: 2 names, one a line; the teacher has 3 classes"
    )
    missing = tmp_path / "none"
    assert complaint(lambda: read_class_names(missing, 3)) == (
        f"--class-names {missing}: cannot be read (No such file or directory)"
    )


def test_names_of_a_data_sets_folders() -> None:
    assert spoken_names(("cat", "dog")) == ("cat", "dog")
    assert spoken_names(("n01440764", "n03888257")) == ("tench, Tinca tinca", "parachute, chute")
    assert spoken_names(("n01440764", "n99999999")) is None
    assert spoken_names(("nv", "mel")) == ("melanocytic nevus", "melanoma")
    thousand = spoken_names(tuple(f"n{number:08}" for number in range(1000)))
    assert thousand is not None
    assert (len(thousand), thousand[0], thousand[701], thousand[999]) == (1000, "tench", "parachute", "toilet tissue")


def test_numbers_are_indices_into_the_names_of_the_teachers_data_set() -> None:
    assert spoken_names(("1", "0"), "pneumoniamnist") == ("pneumonia", "normal")
    assert spoken_names(("1", "0")) == ("1", "0")
    assert spoken_names(("0", "1"), "cifar10") == ("0", "1"), "another number of classes"
    ten = tuple(sorted(map(str, range(9))))
    assert spoken_names(ten, "pathmnist") == DATA_SETS["pathmnist"].class_names


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_sets_classes_have_names(name: str) -> None:
    """As many as it has classes, in words, each with a first synonym of its own."""
    folders = data_set_source(name).values["class_names"]
    words = spoken_names(folders, name)
    assert words is not None
    assert len(words) == len(folders) == DATA_SETS[name].num_classes
    assert len({first_synonym(word) for word in words}) == len(words)
    assert not [word for word in words if word.startswith("n0") or not word.strip(" ,") or not word.isascii()]


def test_wordnets_words_are_those_that_timm_lists() -> None:
    """Tiny-ImageNet's 200 classes and the twenty of Imagenette and Imagewoof, in the order that folders sort in."""
    ensure_importable()
    timm = pytest.importorskip("timm.data", reason='needs pip install "dfkd-fast[timm]"')
    listed = timm.ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True)
    sizes = {"tiny-imagenet": 200, "imagenette": 10, "imagewoof": 10}
    assert {name: len(words) for name, words in wordnet_words().items()} == sizes
    for words in wordnet_words().values():
        assert list(words) == sorted(words)
        assert words == {name: listed[name] for name in words}


def test_synonyms_of_imagenet_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_importable()
    pytest.importorskip("timm.data", reason='needs pip install "dfkd-fast[timm]"')
    names = imagenet_categories()
    words = with_synonyms(names, flag="--prompt released")
    assert (words[0], words[517], len(words)) == ("tench, Tinca tinca", "crane", 1000)
    assert with_synonyms(("cat", "dog"), flag="--prompt released") == ("cat", "dog")
    assert spoken_names(("n02981792", "n01440764")) == ("catamaran", "tench, Tinca tinca"), "an id of neither subset"
    monkeypatch.setitem(sys.modules, "timm.data", None)
    assert complaint(lambda: with_synonyms(names, flag="--prompt released")) == (
        "--prompt released: ImageNet-1k's names with their synonyms are listed by timm; "
        'pip install "dfkd-fast[timm]", or give --class-names FILE or --prompt P2'
    )
    assert spoken_names(("n02981792", "n01440764")) is None


@pytest.mark.parametrize(
    ("prompt", "sentence", "said"),
    [
        ("P2", "a photo of a tench", "of synonyms (tench, Tinca tinca) the first; --prompt released takes all"),
        ("the {name}", "the tench", "of synonyms (tench, Tinca tinca) the first; --prompt released takes all"),
        ("released", "a image of tench, Tinca tinca", "names with all their synonyms (tench, Tinca tinca)"),
    ],
)
def test_which_part_of_a_name_is_taken_is_said(
    prompt: str, sentence: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = prompted(2, ("tench, Tinca tinca", "cat"), prompt, flag="--text clip")
    assert sentences[0] == sentence
    assert capsys.readouterr().out == f'--text clip: 2 sentences, "{sentence}" and so on; {said}\n'


def test_classes_that_share_a_sentence_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    prompted(3, ("crane, wader", "cat", "crane, machine"), "P2", flag="--text clip")
    assert (
        '--text clip: classes 0, 2 share a sentence and so a vector, "a photo of a crane"\n' in capsys.readouterr().out
    )


TEXTS = [
    (method, preset)
    for method in METHODS
    for preset in presets(method)
    if load_method(method).needs.text and not preset.startswith("digits") and preset != "cifar10-demo"  # without text
]


@pytest.mark.parametrize(("method", "preset"), TEXTS)
def test_published_presets_know_their_sentences(hub: list[str], method: str, preset: str) -> None:
    """By the name of the data set alone: no file of names, no real images; a file of names still comes first."""
    config = load_config(default_config(method), preset=preset)
    known = data_set_source(config.teacher_data).values
    vectors, source = class_vectors(config, load_method(method), known["num_classes"], known["class_names"])
    assert (source, len(vectors), len(hub)) == ("clip", known["num_classes"], known["num_classes"])
    assert len(set(hub)) == len(hub)
    assert all(sentence.startswith("a photo of a ") and "," not in sentence for sentence in hub)


def test_a_file_of_names_comes_first(hub: list[str], tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(f"thing {number}" for number in range(10)))
    config = load_config(default_config("nayer"), preset="cifar10", flags=["--class-names", str(file)])
    class_vectors(config, load_method("nayer"), 10, DATA_SETS["cifar10"].class_names)
    assert hub[:2] == ["a photo of a thing 0", "a photo of a thing 1"]


@pytest.mark.parametrize("source", ["orthogonal", "one-hot", "class-index"])
@pytest.mark.parametrize("flag", ["--prompt P3", "--text-model some/model", "--class-names names.txt"])
def test_what_made_up_vectors_do_not_hear_of_is_refused(hub: list[str], source: str, flag: str) -> None:
    config = load_config(default_config("nayer"), preset="cifar10", flags=["--text", source, *flag.split()])
    if (source, flag) == ("class-index", "--text-model some/model"):
        class_vectors(config, load_method("nayer"), 10, ())
        return
    said = complaint(lambda: class_vectors(config, load_method("nayer"), 10, ()))
    assert said == f"{flag}: has no effect with --text {source}; leave it out, or choose --text clip or sbert"


def test_nayers_presets_stop_without_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask for label text and take nothing else in its place; the digits preset asks for none."""
    for name in ("transformers", "open_clip"):
        monkeypatch.setitem(sys.modules, name, None)
    config = load_config(default_config("nayer"), preset="cifar10")
    names = DATA_SETS["cifar10"].class_names
    line = complaint(lambda: class_vectors(config, load_method("nayer"), 10, names))
    assert line.startswith('--text clip: needs transformers; pip install "dfkd-fast[text]"; ')
    assert line.endswith("--text orthogonal or one-hot")
    digits = load_config(default_config("nayer"), preset="digits")
    vectors, source = class_vectors(digits, load_method("nayer"), 10, DATA_SETS["digits"].class_names)
    assert (source, vectors.shape) == ("orthogonal", (10, 512))
