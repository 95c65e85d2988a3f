"""A preset for each published result: which there are, that each command line loads, and the images that it makes.

What each method's presets hold otherwise is checked beside the method.
"""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from dfkd_fast.catalog import METHODS, MODELS, presets
from dfkd_fast.cli.ls import published
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.methods.nayer import NayerConfig
from dfkd_fast.training.assemble import load_method

CIFAR_PAIRS = {
    ("resnet34", "resnet18"),
    ("vgg11", "resnet18"),
    ("wrn40_2", "wrn16_1"),
    ("wrn40_2", "wrn40_1"),
    ("wrn40_2", "wrn16_2"),
}
LARGE_PAIRS = {("tv:resnet34", "tv:resnet18"), ("tv:resnet50", "tv:mobilenet_v2")}
IMAGENET_PAIRS = {("tv:resnet34", "tv:resnet18"), ("tv:resnet50@IMAGENET1K_V2", "tv:mobilenet_v2")}  # of 80.86 %
RATIOS = 4  # 1, 5, 10 and 20 %
CIFAR, LARGE = ("cifar10", "cifar100"), ("imagenette", "imagewoof", "imagenet")
# Preset -> networks that results are published for, and how many results.
PUBLISHED: dict[tuple[str, str], tuple[set[tuple[str, str]], int]] = {
    **{("nayer", name): (CIFAR_PAIRS, 15) for name in CIFAR},  # 100, 200 and 300 epochs
    ("nayer", "tiny-imagenet"): ({("resnet34", "resnet18")}, 3),
    ("nayer", "imagenet"): ({("tv:resnet50", "tv:resnet50")}, 1),
    **{(method, name): (CIFAR_PAIRS, 5) for method in ("muse-s", "muse") for name in CIFAR},
    **{(method, name): (LARGE_PAIRS, 2 * RATIOS) for method in ("muse-s", "muse") for name in LARGE[:2]},
    **{(method, "imagenet"): (IMAGENET_PAIRS, 2 * RATIOS) for method in ("muse-s", "muse")},
    ("muse-s", "imagenet-deit"): ({("timm:deit_base_patch16_224", "timm:deit_tiny_patch16_224")}, 2),
    **{("ssdkd", f"{name}{size}"): (CIFAR_PAIRS, 5) for name in CIFAR for size in ("", "-full")},
    **{("fast", f"{name}-fast{steps}"): (CIFAR_PAIRS, 5) for name in CIFAR for steps in (2, 5, 10)},
    **{("fast", f"{name}-fast100"): (LARGE_PAIRS, 2 * RATIOS) for name in LARGE[:2]},
    ("fast", "imagenet-fast100"): (IMAGENET_PAIRS, 2 * RATIOS),
    ("fast", "imagenet-fast50"): (
        {("tv:resnet50", f"tv:{name}") for name in ("resnet50", "resnet18", "mobilenet_v2")},
        3,
    ),
    **{(method, name): (CIFAR_PAIRS, 5) for method in ("cmi", "deepinversion") for name in CIFAR},
    **{("hidfd", name): ({("resnet34", "resnet18")}, 2) for name in (*CIFAR, "cinic", "tiny-imagenet")},
    **{("hidfd", name): ({("tv:resnet34", "tv:resnet18")}, 2) for name in ("imagenet", "ham10000")},
    **{(method, name): (CIFAR_PAIRS, 5) for method in ("dafl", "zskt", "dfq") for name in CIFAR},
    ("cmi", "cifar10-scratch"): ({("wrn40_2", "wrn16_1")}, 1),
    ("cmi", "cifar10-preinverted"): ({("wrn40_2", "wrn16_1")}, 1),
    **{(method, name): (CIFAR_PAIRS, 5) for method in ("msarc", "spaceshipnet") for name in CIFAR},
    **{(method, "tiny-imagenet"): ({("resnet34", "resnet18")}, 1) for method in ("msarc", "spaceshipnet")},
    **{("msarc", name): ({("tv:resnet34", "tv:resnet18")}, 1) for name in ("imagenette", "imagenet100")},
    **{("msarc", f"{name}mnist"): ({("wrn40_2", "wrn40_1")}, 1) for name in ("path", "blood", "pneumonia")},
    ("deepinversion", "imagenet"): ({("tv:resnet50", "tv:resnet50")}, 1),
}
EVERY = [(method, name) for method in METHODS for name in presets(method)]


def loaded(method: str, name: str, entry: dict[str, Any]) -> TrainConfig[Any]:
    return load_config(default_config(method), preset=name, flags=shlex.split(entry.get("flags", "")))


def images_made(config: TrainConfig[Any]) -> int:
    """Over all epochs; the schedule needs no networks."""
    schedule = SimpleNamespace(config=config.method)
    rounds = load_method(config.method_name).rounds
    return sum(rounds(schedule, epoch) for epoch in range(config.method.epochs)) * config.method.synthesis_batch_size


def test_every_published_result_has_a_preset() -> None:
    found = {}
    for method, name in EVERY:
        entries = [entry for entry in published(method, name) if "top1" in entry]
        if entries:
            found[method, name] = ({(entry["teacher"], entry["student"]) for entry in entries}, len(entries))
    assert {key: found.get(key) for key in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize(("method", "name"), EVERY)
def test_a_results_command_loads(method: str, name: str) -> None:
    """Its networks are those of the result, its recipe can be run, and no two results have one command."""
    entries = published(method, name)
    for entry in entries:
        config = loaded(method, name, entry)
        config.check()
        assert (config.teacher, config.student) == (entry["teacher"], entry["student"])
        for network in (config.teacher, config.student):
            assert network in MODELS or network.startswith(("zoo:", "tv:", "timm:"))
        assert entry["source"]
        by_text = method in ("nayer", "muse", "muse-s") and "top1" in entry
        assert (config.text == "clip") == (by_text or entry["source"] == "CPNet, released scripts")
        assert 0 < entry.get("top1", 1) < 100
        assert entry.get("hours", 1) > 0
    commands = [entry.get("flags", "") for entry in entries]
    assert len(set(commands)) == len(commands)


@pytest.mark.parametrize(("name", "epochs", "images"), [("cifar10", 320, 320_000), ("cifar100", 320, 320_000)])
def test_nayer_on_cifar_is_the_released_script(name: str, epochs: int, images: int) -> None:
    """B_S 512, B_G 400, I 2, S 400, g 30 or 40; E = 100, 200 and 300 beside 20 epochs of warm-up."""
    config = loaded("nayer", name, {})
    recipe = config.method
    steps = {"cifar10": 30, "cifar100": 40}[name]
    assert recipe == NayerConfig(epochs=epochs, synthesis_steps=steps)
    sizes = (recipe.batch_size, recipe.synthesis_batch_size, recipe.rounds, recipe.warmup_rounds, recipe.student_steps)
    assert sizes == (512, 400, 2, 10, 400)
    assert (recipe.ce_weight, recipe.bn_weight, recipe.adv_weight, recipe.kd_temperature) == (0.5, 10, 1.33, 20)
    assert (recipe.student_lr, recipe.student_lr_min, recipe.generator_lr, recipe.generator_life) == (
        0.2,
        2e-4,
        4e-3,
        10,
    )
    assert images_made(config) == images
    made = {images_made(loaded("nayer", name, entry)) for entry in published("nayer", name)}
    assert made == {160_000, 240_000, 320_000}


def test_nayer_on_larger_images() -> None:
    tiny, large = (loaded("nayer", name, {}) for name in ("tiny-imagenet", "imagenet"))
    recipe = tiny.method
    sizes = (recipe.batch_size, recipe.synthesis_batch_size, recipe.rounds, recipe.warmup_rounds, recipe.student_steps)
    assert sizes == (256, 200, 4, 20, 1000)
    assert (recipe.epochs, recipe.synthesis_steps, recipe.student_lr) == (320, 60, 0.1)
    assert (recipe.ce_weight, recipe.bn_weight, recipe.adv_weight) == (0.5, 10, 1.33)
    assert images_made(tiny) == 20 * 20 * 200 + 300 * 4 * 200
    recipe = large.method
    sizes = (recipe.batch_size, recipe.synthesis_batch_size, recipe.rounds, recipe.student_steps)
    assert sizes == (128, 50, 20, 2000)
    assert (recipe.epochs, recipe.synthesis_steps, recipe.flip, recipe.jitter) == (320, 100, False, True)
    assert (recipe.crop_scale, recipe.student_crop_scale, recipe.student_flip) == (1.0, 0.08, "on")
    assert (recipe.ce_weight, recipe.bn_weight, recipe.adv_weight) == (0.1, 0.1, 0.1)
    assert images_made(large) == 320 * 20 * 50


@pytest.mark.parametrize(("method", "name"), [key for key in PUBLISHED if key[0] in ("fast", "ssdkd", "deepinversion")])
def test_images_made(method: str, name: str) -> None:
    """An image budget in every result's command; those of MUSE and CMI are checked beside the methods."""
    for entry in published(method, name):
        config = loaded(method, name, entry)
        if name.endswith("fast100"):  # 1 % is 10 images a class
            classes = {"imagenet": 1000}.get(name.partition("-")[0], 10)
            ratio = {9: 1, 46: 5, 92: 10, 184: 20, 50: 1, 250: 5, 500: 10, 1000: 20}[config.method.student_steps]
            expected = 10 * classes * ratio
        else:
            expected = {
                "imagenet-fast50": 140_000 + 400 * 10 * 100,
                "imagenet": (10 * 10 + 90 * 9) * 152,
            }.get(name, (200 if method == "deepinversion" else 220) * 256)
        assert images_made(config) == expected
        before = [load_method(method).rounds(SimpleNamespace(config=config.method), epoch) for epoch in range(21)]
        assert any(before[: config.method.warmup_epochs + 1]), "the student starts on an empty pool"


def test_ls_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "presets", "nayer", "muse"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "cifar10 wrn40_2 -> wrn16_2 94.07 % (94.11 +- 0.18 [2]) 6.77 h [1] --preset cifar10" in lines
    assert "[2] NAYER table 14, three runs" in lines
    assert lines[0] == "dfkd-fast train nayer FLAGS"
    assert "[1] NAYER tables 1 and 2, A100" in lines
    pair = "--teacher tv:resnet50@IMAGENET1K_V2 --student tv:mobilenet_v2 --data-ratio 1"
    assert f"imagenet tv:resnet50@IMAGENET1K_V2 -> tv:mobilenet_v2 24.25 % 9.30 h [4] --preset imagenet {pair}" in lines
    assert "[4] MUSE table 1, A100" in lines
    assert not [line for line in lines if "train fast" in line]
    assert main(["ls", "presets", "hidfd"]) == 0
    assert capsys.readouterr().out.startswith("dfkd-fast train hidfd FLAGS --collected DATA\n")
    assert main(["ls", "presets", "mouse"]) == 2
    assert capsys.readouterr().err == "dfkd-fast: ls presets mouse: did you mean muse? choose " + METHODS_LISTED


NAYER_T14 = {  # mean and spread of three runs, E = 300
    "cifar10": {"resnet34 resnet18": (95.24, 0.15), "wrn40_2 wrn16_2": (94.11, 0.18), "wrn40_2 wrn16_1": (91.94, 0.15)},
    "cifar100": {
        "resnet34 resnet18": (77.56, 0.12),
        "wrn40_2 wrn16_2": (71.72, 0.14),
        "wrn40_2 wrn16_1": (62.23, 0.21),
    },
}
MUSE_T11 = {  # IPC 10 and 50: data ratios of 1 and 5 %
    "muse-s": {"imagenette": ((34.5, 1.3), (80.3, 0.2)), "imagewoof": ((20.5, 0.2), (36.2, 0.4))},
    "muse": {"imagenette": ((35.2, 1.6), (82.2, 0.2)), "imagewoof": ((21.1, 0.2), (37.3, 0.3))},
}
MUSE_T11["muse-s"]["imagenet"] = ((22.3, 0.7), (40.8, 0.3))
MUSE_T11["muse"]["imagenet"] = ((24.1, 0.5), (42.8, 0.5))


def test_published_spreads() -> None:
    """All 18 that the papers print, and no others; each beside the single number of the same pair and settings."""
    found: dict[Any, tuple[float, float]] = {}
    for method, name in EVERY:
        for entry in published(method, name):
            if runs := entry.get("runs"):
                found[method, name, f"{entry['teacher']} {entry['student']}", loaded(method, name, entry).method] = (
                    runs["top1"],
                    runs["std"],
                )
                assert abs(runs["top1"] - entry["top1"]) < 0.2
                assert runs["source"].startswith(("NAYER table 14", "MUSE table 11"))
    wanted = {}
    for name, pairs in NAYER_T14.items():
        recipe = load_config(default_config("nayer"), preset=name).method
        wanted |= {("nayer", name, pair, recipe): value for pair, value in pairs.items()}
    for method, cells in MUSE_T11.items():
        for name, values in cells.items():
            for ratio, value in zip((1, 5), values, strict=True):
                flags = ["--data-ratio", str(ratio)]
                recipe = load_config(default_config(method), preset=name, flags=flags).method
                wanted[method, name, "tv:resnet34 tv:resnet18", recipe] = value
    assert found == wanted
    assert len(found) == 18


@pytest.mark.parametrize("method", ["dafl", "zskt", "dfq"])
def test_a_row_says_that_its_hours_are_of_other_runs(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """CIFAR-100's accuracies are CMI's, SSD-KD's table has the hours and other accuracies; on CIFAR-10 they agree."""
    assert main(["ls", "presets", method]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (mark,) = [
        line.split()[0] for line in lines if line.endswith(" SSD-KD table 2, V100, of other runs than the top-1's")
    ]
    (own,) = [line.split()[0] for line in lines if line.endswith(" CMI README")]
    rows = [line for line in lines if line.startswith("cifar100 ")]
    assert len(rows) == 5
    assert all(f" h {mark} {own} --preset cifar100" in row for row in rows)
    assert not [line for line in lines if line.startswith("cifar10 ") and mark in line]


METHODS_LISTED = f"{', '.join(list(METHODS)[:-1])} or {list(METHODS)[-1]}\n"
