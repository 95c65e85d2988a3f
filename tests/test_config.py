"""Sources of a config's values, the wording of rejections, and the round trip through a file."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd_fast import catalog
from dfkd_fast.catalog import METHODS
from dfkd_fast.config.data_sets import data_set_of
from dfkd_fast.config.flags import flag_types
from dfkd_fast.config.record import config_hash, differences, settled, write_config
from dfkd_fast.config.setting import Setting, setting, stated_of
from dfkd_fast.config.sources import default_config, load_config, load_run, named_method, read_toml
from dfkd_fast.config.train import TrainConfig, flatten
from dfkd_fast.errors import UserError

HASHES = Path(__file__).parent / "golden" / "config_hashes.json"


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """A recipe with one setting of each kind."""

    epochs: int = setting(4, at_least=1)
    warmup_epochs: int = 1
    kd_temperature: float = setting(20.0, above=0)
    bn_weight: float = 10.0
    flip: bool = True
    betas: tuple[float, float] = (0.5, 0.999)
    sizes: tuple[int, ...] = (1, 2)
    rounds: int | None = None

    def check(self) -> None:
        """Any two of these go together."""

    def following(self, before: typing.Any, share: float) -> dict[str, int]:
        return {}


@pytest.fixture(autouse=True)
def _toy_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.METHODS, "toy", f"{__name__}:Toy")


def toy(*flags: str, file: Path | None = None) -> TrainConfig[ToyConfig]:
    return load_config(default_config("toy"), file=file, flags=flags)


def rejected(*flags: str, file: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        toy(*flags, file=file)
    assert "\n" not in str(error.value)
    return str(error.value)


def toml(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "my.toml"
    file.write_text(text)
    return file


def test_precedence(tmp_path: Path) -> None:
    file = toml(tmp_path, "[method]\nbn_weight = 2\nepochs = 7\n[pool]\ncapacity = 5\n")
    config = toy("--method.epochs", "9", "--seed=3", file=file)
    assert (config.method.bn_weight, config.method.epochs, config.method.flip) == (2.0, 9, True)
    assert (config.pool.capacity, config.seed, config.eval.every) == (5, 3, 1)


def test_label_embeddings_is_another_name_of_text(tmp_path: Path) -> None:
    file = toml(tmp_path, 'label_embeddings = "a.safetensors"\n')
    assert toy(file=file).text == "a.safetensors"
    assert toy("--label-embeddings", "one-hot", file=file).text == "one-hot"
    assert toy("--label-embeddings=b.safetensors", "--text", "file").text == "b.safetensors"
    assert toy("--text", "file", "--label-embeddings", "b.safetensors").text == "b.safetensors"
    assert toy("--text", "clip", file=file).text == "clip"
    assert toy("--text", "file").text == "file"


def test_preset_below_file_below_flags(tmp_path: Path) -> None:
    base = default_config("nayer")
    preset = load_config(base, preset="imagenet")
    assert (base.method.rounds, preset.method.rounds, preset.method.bn_weight) == (2, 20, 0.1)
    file = toml(tmp_path, '[method]\nname = "nayer"\nrounds = 3\nbn_weight = 4.0\n')
    config = load_config(base, preset="imagenet", file=file, flags=["--bn-weight", "5"])
    assert (config.method.rounds, config.method.bn_weight, config.method.student_steps) == (3, 5.0, 2000)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--method.no-flip"], {"flip": False}),
        (["--no-flip", "--bn-weight=-1.5"], {"flip": False, "bn_weight": -1.5}),
        (["--bn_weight", "-5"], {"bn_weight": -5.0}),
        (["--betas", "0.1", "0.2", "--sizes"], {"betas": (0.1, 0.2), "sizes": ()}),
        (["--sizes", "3", "4", "5", "--epochs", "1", "--epochs", "2"], {"sizes": (3, 4, 5), "epochs": 2}),
        (["--rounds", "3"], {"rounds": 3}),
    ],
)
def test_flags_of_the_recipe(flags: list[str], expected: dict[str, object]) -> None:
    assert toy(*flags).method == replace(ToyConfig(), **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--precision fp8", "--precision fp8: choose auto, fp32, bf16, fp16 or tf32"),
        ("--precision bf61", "--precision bf61: did you mean bf16? choose auto, fp32, bf16, fp16 or tf32"),
        ("--precision", "--precision: needs a value; choose auto, fp32, bf16, fp16 or tf32"),
        ("--method.bn-weigth 3", "--method.bn-weigth: unknown flag; did you mean --method.bn-weight?"),
        ("--bn-weigth 3", "--bn-weigth: unknown flag; did you mean --method.bn-weight?"),
        ("--capacity 3", "--capacity: unknown flag; did you mean --pool.capacity?"),
        ("--pool 3", "--pool: unknown flag; did you mean --pool.capacity?"),
        ("--qwertz 3", "--qwertz: unknown flag; --help lists them all"),
        ("--bn-weight abc", "--bn-weight abc: expected a number"),
        ("--method.epochs 1.5", "--method.epochs 1.5: expected a whole number"),
        ("--seed", "--seed: expected a whole number"),
        ("--pool.capacity many", "--pool.capacity many: expected a whole number"),
        ("--channels-last yes", "--channels-last yes: takes no value; write --channels-last to set it"),
        ("--teacher a b", "--teacher a b: takes one value"),
        ("--image-size 9 8 7", "--image-size 9 8 7: expected a whole number or 2 whole numbers"),
        ("--betas 1", "--betas 1: expected 2 numbers"),
        ("--sizes 1 x", "--sizes 1 x: expected a list of whole numbers"),
        ("stray --seed 1", "stray: unexpected; settings are written --name value"),
        ("--seed 1 --precision fp8 --bn-weight 2", "--precision fp8: choose auto, fp32, bf16, fp16 or tf32"),
    ],
)
def test_rejected_flags(flags: str, message: str) -> None:
    assert rejected(*flags.split()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[method]\nbn_weight = "abc"', '{file}: [method] bn_weight = "abc": expected a number'),
        ("[method]\nbn_weight = true", "{file}: [method] bn_weight = true: expected a number"),
        ("[method]\nbn_weight = false", "{file}: [method] bn_weight = false: expected a number"),
        ("[method]\nepochs = 1.5", "{file}: [method] epochs = 1.5: expected a whole number"),
        ("[method]\nbetas = [1.0]", "{file}: [method] betas = [1.0]: expected 2 numbers"),
        ("[method]\nflip = 1", "{file}: [method] flip = 1: expected true or false"),
        ('precision = "fp8"', '{file}: precision = "fp8": choose auto, fp32, bf16, fp16 or tf32'),
        ("[method]\nbn_weigth = 1", "{file}: [method] bn_weigth: unknown key; did you mean bn_weight?"),
        ("bn_weight = 1", "{file}: bn_weight: unknown key; did you mean [method] bn_weight?"),
        ("[method]\nseed = 1", "{file}: [method] seed: unknown key; did you mean seed outside of any section?"),
        ("[pol]\ncapacity = 1", "{file}: [pol] capacity: unknown key; did you mean [pool] capacity?"),
        ("method = 3", "{file}: method: unknown key; did you mean [method] epochs?"),
        ("qwertz = 3", "{file}: qwertz: unknown key"),
        ('[method]\nname = "nayer"', '{file}: [method] name = "nayer": this is no config for toy'),
    ],
)
def test_rejected_toml(tmp_path: Path, text: str, message: str) -> None:
    file = toml(tmp_path, text)
    assert rejected(file=file) == message.format(file=file)


def test_unreadable_config_files(tmp_path: Path) -> None:
    missing, broken, binary = tmp_path / "no.toml", toml(tmp_path, "a = ["), tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert rejected(file=missing) == f"--config {missing}: no such file or directory"
    assert rejected(file=tmp_path) == f"--config {tmp_path}: is a directory"
    assert rejected(file=broken).startswith(f"--config {broken}: no valid TOML: ")
    assert rejected(file=binary).startswith(f"--config {binary}: no valid TOML: ")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"^train nayr: did you mean nayer\? choose nayer"):
        default_config("nayr")
    with pytest.raises(UserError, match=r"^--preset cifar01: did you mean cifar10\? choose "):
        load_config(default_config("nayer"), preset="cifar01")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "",
            "--teacher: missing; choose a name of `dfkd-fast ls models`, zoo:NAME, tv:NAME, timm:NAME or FILE.py:NAME",
        ),
        (
            "--teacher cnn",
            "--student: missing; choose a name of `dfkd-fast ls models`, tv:NAME, timm:NAME or FILE.py:NAME",
        ),
        ("--epochs 0", "--method.epochs 0: choose 1 or more"),
        ("--epochs 2 --warmup-epochs 2", "--method.warmup-epochs 2: choose fewer than --method.epochs 2"),
        ("--bn-weight nan", "--method.bn-weight nan: choose a finite number"),
        ("--kd-temperature 0", "--method.kd-temperature 0.0: choose more than 0"),
        ("--teacher-recipe.batch-size 0", "--teacher-recipe.batch-size 0: choose 1 or more"),
        ("--seed -1", "--seed -1: choose 0 or more"),
        ("--checkpoint.keep 1", "--checkpoint.keep 1: choose 2 or more"),
        ("--train-teacher", "--train-teacher: needs --data with a training split"),
        ("--train-teacher --data digits --teacher-weights x", "--train-teacher: leave it out where --teacher-weights"),
    ],
)
def test_check(flags: str, message: str) -> None:
    named = [] if "missing" in message else ["--teacher", "cnn", "--student", "cnn_s"]
    with pytest.raises(UserError) as error:
        toy(*flags.split(), *named).check()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("method", "flag", "least"),
    [
        ("dfq", "--method.student-steps-per-round", 1),
        ("zskt", "--method.attention-stages", 0),
        ("spaceshipnet", "--method.exchange-probability", 0),
        ("msarc", "--method.grad-cam-stages", 0),
        ("msarc", "--method.latent-lr", 0),
    ],
)
def test_limits_of_methods(method: str, flag: str, least: int) -> None:
    config = load_config(default_config(method), preset="digits", flags=[flag, str(least)])
    config.check()
    with pytest.raises(UserError, match=rf"^{flag} {least - 1}(\.0)?: choose {least} or more$"):
        load_config(config, flags=[flag, str(least - 1)]).check()


def _limits(stated: Setting) -> bool:
    return stated.any_number or stated.at_least is not None or stated.above is not None


@pytest.mark.parametrize("method", METHODS)
def test_every_number_of_a_recipe_has_a_limit_or_is_free(method: str) -> None:
    """Weights of terms may have any sign; whatever else counts or measures something has a least value."""
    config = default_config(method).method
    hints = get_type_hints(type(config))
    numbers = [key for key in hints if {int, float} & {hints[key], *get_args(hints[key])}]
    assert "epochs" in numbers
    free = [key for key in numbers if key.endswith("_weight")]
    unlimited = [key for key in numbers if key not in free and not _limits(stated_of(type(config), key))]
    assert unlimited == []


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("ssdkd", "--priority-eps 0"),
        ("ssdkd", "--priority-exponent -1"),
        ("ssdkd", "--buffer-size 0"),
        ("ssdkd", "--bn-momentum 1.5"),
        ("ssdkd", "--student-lr-steps 3 -5"),
        ("muse", "--data-ratio 0"),
        ("muse", "--cam-sigma 0"),
        ("muse", "--batch-shares 0 0"),
        ("muse", "--batch-shares -1 2"),
        ("muse", "--image-sizes 0 32"),
        ("muse", "--inner-radius 0.5"),
        ("muse", "--rounds 0"),
        ("nayer", "--rounds 0 --warmup-rounds 0"),
        ("nayer", "--rounds 0 --warmup-epochs 0"),
        ("nayer", "--crop-scale 0"),
        ("hidfd", "--blend-threshold 2"),
        ("hidfd", "--frequency-momentum 2"),
        ("cmi", "--local-scale 1.5"),
        ("deepinversion", "--image-betas 0.5 2"),
        ("ssdkd", "--reset-epoch -1"),
    ],
)
def test_impossible_recipes_are_refused(method: str, flags: str) -> None:
    config = load_config(default_config(method), preset="digits")
    config.check()
    config = load_config(config, flags=flags.split())
    with pytest.raises(UserError, match=rf"^--method\.{flags.split()[0][2:]} .*: (choose|makes no images)"):
        config.check()


def test_run_folder() -> None:
    flags = ["--teacher", "tv:resnet50", "--student", "cnn", "--seed", "2"]
    assert toy(*flags).run_folder == Path("runs/toy-nodata-tv_resnet50-cnn-s2")
    assert toy(*flags, "--data", "/d/cifar10-jpg.tar.gz").run_folder.name == "toy-cifar10-jpg-tv_resnet50-cnn-s2"
    assert toy(*flags, "--data", "/d/x", "--dataset", "c10").run_folder.name == "toy-c10-tv_resnet50-cnn-s2"
    assert toy(*flags, "--run-dir", "here").run_folder == Path("here")


def test_a_new_setting_leaves_the_hashes_of_older_runs() -> None:
    """Recorded runs are known by them. Give it its value of then, as `setting(..., formerly=...)`; a new method, or a
    default that is meant to change what runs compute, has its line written by `python tests/test_config.py`.
    """
    assert hashes() == json.loads(HASHES.read_text())


def hashes() -> dict[str, str]:
    """Method -> the hash of its default config."""
    return {method: config_hash(default_config(method)) for method in catalog.FACTS}


def test_a_new_setting_of_one_method_stays_in_the_hashes_of_others() -> None:
    """SSD-KD's reset is younger than its runs; Fast and MSARC had theirs, and 0 was no default there."""
    for method, value in (("ssdkd", 120), ("fast", 0), ("msarc", 0)):
        default = default_config(method)
        changed = load_config(default, flags=["--reset-epoch", str(value)])
        assert config_hash(changed) != config_hash(default)
        assert settled(changed)["method.reset_epoch"] == str(value)
    assert "method.reset_epoch" not in settled(default_config("ssdkd"))


def test_a_renamed_setting_keeps_its_former_name_in_hashes_and_runs(tmp_path: Path) -> None:
    """`select_iterate` was `keep`: hashes and checkpoints know it by that for good, and configs that runs have written
    are read; who writes the old name is told the new one.
    """
    config = load_config(default_config("fast"), flags=["--select-iterate", "last"])
    values = settled(config)
    assert values["method.keep"] == "last"
    assert "method.select_iterate" not in values
    assert config_hash(config) == "27f5f33dbf941455"  # of the time when it was `keep`
    run, own = tmp_path / "run.toml", tmp_path / "own.toml"
    write_config(config, run)
    run.write_text(run.read_text().replace("select_iterate =", "keep ="))
    assert load_config(default_config("fast"), file=run) == config
    own.write_text('[method]\nkeep = "last"\n')
    with pytest.raises(UserError, match=r"\[method\] keep: unknown key; did you mean select_iterate\?$"):
        load_config(default_config("fast"), file=own)
    for flag in ("--keep", "--method.keep"):
        with pytest.raises(UserError, match=f"^{flag}: unknown flag; did you mean --method.select-iterate\\?$"):
            load_config(default_config("fast"), flags=[flag, "last"])


def test_round_trip_keeps_every_kind_of_value(tmp_path: Path) -> None:
    config = toy(
        *("--no-flip", "--bn-weight", "1e-05", "--betas", "0.1", "0.25", "--sizes", "--rounds", "3"),
        *("--data", 'odd "name"\\ [x]=#', "--teacher-weights", "/a b/c.pt", "--no-channels-last"),
        *("--pool.capacity", "7", "--pool.policy", "ring", "--teacher-recipe.epochs", "2", "--dataset=--x"),
    )
    write_config(config, tmp_path / "config.toml")
    assert toy(file=tmp_path / "config.toml") == config
    assert named_method(tmp_path / "config.toml") == "toy"
    moved = load_run(tmp_path)
    assert moved == replace(config, run_dir=tmp_path)


@settings(deadline=None)  # a busy machine is no bug
@given(
    weight=st.floats(allow_nan=False),
    data=st.none() | st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text not in ("", "None")),
    sizes=st.lists(st.integers(-(2**63), 2**63 - 1)),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, weight: float, data: str | None, sizes: list[int]
) -> None:
    method = ToyConfig(bn_weight=weight, sizes=tuple(sizes))
    config = replace(default_config("toy"), method=method, data=data)
    file = tmp_path_factory.mktemp("round-trip") / "config.toml"
    write_config(config, file)
    assert toy(file=file) == config


def test_differences_and_hash() -> None:
    before, after = toy(), toy("--bn-weight", "5", "--seed", "1")
    assert list(differences(before, after)) == [("method.bn_weight", 10.0, 5.0), ("seed", 0, 1)]
    assert config_hash(before) != config_hash(after)
    assert config_hash(before) == config_hash(toy("--log.every", "1", "--threads", "1", "--run-dir", "x"))
    assert config_hash(before) == config_hash(toy("--compile", "max", "--no-cuda-graphs", "--optim.impl", "foreach"))
    assert config_hash(before) != config_hash(toy("--teacher-precision", "bf16"))


def sections(config: object) -> Iterator[object]:
    yield config
    for item in fields(config):  # type: ignore[arg-type]
        if is_dataclass(value := getattr(config, item.name)):
            yield from sections(value)


@pytest.mark.parametrize("method", catalog.METHODS)
def test_every_config_can_be_written(method: str) -> None:
    """TOML has no null, so a setting that may be None must default to it; and a short flag must not hide a long one."""
    config = default_config(method)
    for section in sections(config):
        for name, hint in typing.get_type_hints(type(section)).items():
            if type(None) in typing.get_args(hint):
                assert getattr(section, name) is None, name
    own = {item.name for item in fields(config)}
    assert own.isdisjoint(item.name for item in fields(config.method))
    assert all(flag.startswith("--") for flag in flag_types(config))


PRESETS = [(method, name) for method in catalog.METHODS for name in catalog.presets(method)]


@pytest.mark.parametrize(("method", "name"), PRESETS)
def test_presets(method: str, name: str, tmp_path: Path) -> None:
    """A preset is a whole run but for the data, lists only what differs from the defaults, and can be written down."""
    base = default_config(method)
    config = load_config(base, preset=name)
    replace(config, train_teacher=False).check()
    table = tomllib.loads(catalog.presets(method)[name].read_text())
    assert table.pop("preset")["source"]
    written = {key for key, _ in flatten_table(table)}
    if data_set_of(name) and not config.train_teacher:  # which its name says
        written.add("teacher_data")
        assert config.teacher_data == data_set_of(name)
    assert written == {key for key, _, _ in differences(base, config)}
    write_config(config, tmp_path / "config.toml")
    assert load_config(base, file=tmp_path / "config.toml") == config


def test_the_convention_of_a_preset_is_for_teachers_that_are_not_trained() -> None:
    """Whatever says in the end whether it is."""
    nayer = default_config("nayer")
    assert load_config(nayer, preset="cifar10").teacher_data == "cifar10"
    assert load_config(nayer, preset="cifar10", flags=["--train-teacher"]).teacher_data == ""
    flags = ["--train-teacher", "--teacher-data", "svhn"]
    assert load_config(nayer, preset="cifar10", flags=flags).teacher_data == "svhn"
    assert load_config(nayer, preset="digits").teacher_data == ""
    assert load_config(nayer, preset="digits", flags=["--no-train-teacher"]).teacher_data == "digits"


def flatten_table(table: dict[str, typing.Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten_table(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_presets_hold_the_published_recipe() -> None:
    """Values of the paper's tables and the authors' scripts, stated here a second time."""
    known = {
        "cifar10": (320, 20, 512, 400, 2, 30, 400, 0.2, 10, 0.5, 10.0, 1.33),
        "cifar100": (320, 20, 512, 400, 2, 40, 400, 0.2, 10, 0.5, 10.0, 1.33),
        "tiny-imagenet": (320, 20, 256, 200, 4, 60, 1000, 0.1, 20, 0.5, 10.0, 1.33),
        "imagenet": (320, 20, 128, 50, 20, 100, 2000, 0.1, 20, 0.1, 0.1, 0.1),
    }
    keys = "epochs warmup_epochs batch_size synthesis_batch_size rounds synthesis_steps student_steps student_lr"
    keys += " warmup_rounds ce_weight bn_weight adv_weight"
    for name, values in known.items():
        config = dict(flatten(load_config(default_config("nayer"), preset=name).method))
        assert tuple(config[key] for key in keys.split()) == values, name


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "a = " + "[" * 20_000: "nested too deeply",
        "[" + ".".join("a" * 20_000) + "]": "nested too deeply",
        ".".join("a" * 20_000) + " = 1": "nested too deeply",
        "# " + "x" * 2**20: "no config: more than 1,048,576 bytes",
    }.items(),
    ids=["lists", "tables", "keys", "bytes"],
)
def test_deep_and_huge_toml(tmp_path: Path, text: str, words: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(UserError, match=r"^--config .*: no config: ") as caught:
        read_toml(file, "--config")
    assert words in str(caught.value)


def test_a_file_without_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        read_toml(Path("/dev/zero"), "--config")


if __name__ == "__main__":
    HASHES.write_text(json.dumps(hashes(), indent=1) + "\n")
