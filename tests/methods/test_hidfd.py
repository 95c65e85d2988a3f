"""HiDFD: its steps against Eqs. 8 to 14 written out in float64, the released form, the pool, and what is deployed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from rounds import Rounds, begin_round
from safetensors import safe_open
from test_contract import teacher_file, tiny  # noqa: F401 - a fixture
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from toy_networks import INFO

from dfkd_fast.benchmark.step_profiler import profile_steps
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.catalog import presets
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.costs.flops import count_step_flops
from dfkd_fast.costs.work import SynthesisKind, recipe_work
from dfkd_fast.data.splits import load_split
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import CollectedImages, Setup, SynthBatch, weighted_sum
from dfkd_fast.methods.hidfd.config import images_in_a_pass
from dfkd_fast.methods.hidfd.hybrid import check_passes
from dfkd_fast.methods.hidfd.method import Hidfd, HidfdConfig
from dfkd_fast.models.teacher import FrozenNet, NetOutput, frozen_alias
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.sampling import EpochShuffle
from dfkd_fast.training.assemble import load_method, make_student
from dfkd_fast.training.checkpoints.checkpoint import load_network
from dfkd_fast.training.evaluate import deployed, deployed_name
from dfkd_fast.training.inner import bind
from dfkd_fast.training.real_images.collected import load_collected
from dfkd_fast.training.student_recipe import student_lr
from dfkd_fast.training.train import train

CONFIG = HidfdConfig(
    epochs=6,
    warmup_epochs=2,
    synthesis_batch_size=6,
    synthesis_steps=4,
    synthetic_images=20,
    batch_size=8,
    student_steps=3,
    latent_dim=8,
    generator_width=2,
    crop_scale=1.0,
)
Make = Callable[..., Hidfd]
GAN_TERMS = ("d_gan", "d_adc", "blend", "trans", "g_gan", "g_adc", "reg")


@pytest.fixture
def make(teacher: nn.Module, student: nn.Module, runtime: Runtime) -> Make:
    def build(config: HidfdConfig = CONFIG, images: int = 9, collected: CollectedImages | None = None) -> Hidfd:
        torch.manual_seed(3)
        noise = CollectedImages.noise(INFO, images)
        collected = collected or noise
        setup = Setup(
            FrozenNet(teacher, INFO, runtime), frozen_alias(student), INFO, torch.empty(4, 0), collected=collected
        )
        return runtime.place(Hidfd(config, setup)).train()  # type: ignore[return-value]

    return build


def step_of(method: Hidfd, turn: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the discriminator (0) or the generator (1), as an epoch begins."""
    begin_round(method, 0)
    return method.gan.generator_step() if turn else method.gan.discriminator_step()


def fill(method: Hidfd, runtime: Runtime) -> Iterator[SynthBatch]:
    """What goes into the pool once the GAN has learned."""
    bind(method, runtime)
    return method.hybrid.batches()


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (INFO.mean, INFO.std))
    return (images - mean) / std


def pooled(teacher: nn.Module, view: Tensor) -> Tensor:
    """What the toy teacher's classifier reads."""
    read: list[Tensor] = []
    handle = teacher.fc.register_forward_hook(lambda _module, inputs, _out: read.append(inputs[0]))
    teacher(view)
    handle.remove()
    return read[0]


def norms(first: Tensor, second: Tensor) -> Tensor:
    return sum((a - b).square().sum().sqrt() for a, b in zip(first, second, strict=True)) / len(first)


@pytest.mark.parametrize("released", [False, True])
def test_discriminators_terms(make: Make, teacher: nn.Module, released: bool) -> None:
    """Eqs. 1, 8 and 9; as released: hinge, no gradient through the feature terms, no gate, images in [-1, 1]."""
    method = make(replace(CONFIG, released=released, blend_threshold=1.0 if released else 0.0))
    gan, said = method.gan, []
    gan.discriminator.register_forward_hook(lambda _module, _inputs, out: said.append(out))
    fake, terms = step_of(method, 0)
    (judged,) = said
    slots = gan.order[:6]
    real, labels = gan.pixels[slots].permute(0, 3, 1, 2).double() / 255, gan.pixel_labels[slots]
    assert torch.equal(gan.labels, labels) != released  # paired, or drawn anew
    features = judged.features
    view = 2 * torch.cat([real, fake]) - 1 if released else normalised(torch.cat([real, fake]))
    targets = pooled(teacher, view).detach()
    scores = judged.scores
    classes = F.log_softmax(judged.classes, 1)
    gan_loss = F.relu(1 - scores[:6]).mean() + F.relu(1 + scores[6:]).mean()
    if not released:
        gan_loss = -torch.log(torch.sigmoid(scores[:6])).mean() - torch.log(1 - torch.sigmoid(scores[6:])).mean()
    expected = {
        "d_gan": gan_loss,
        "d_adc": -sum(classes[i, 2 * labels[i]] + classes[6 + i, 2 * gan.labels[i] + 1] for i in range(6)) / 6,
        "blend": norms(targets[:6], features[6:]) + norms(targets[6:], features[:6]),
        "trans": norms(targets[:6], features[:6]) + norms(targets[6:], features[6:]),
    }
    assert terms.keys() == expected.keys()
    weights = [gan.discriminator.blocks[0].conv1.weight]
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-9, atol=1e-9)
        if released and name in ("blend", "trans"):
            assert not terms[name].requires_grad
    learned = ("d_gan", "d_adc") if released else tuple(expected)
    (ours,) = torch.autograd.grad(sum(terms[name] for name in learned), weights)
    assert ours.abs().max() > 0


def test_blending_has_a_gate(make: Make) -> None:
    """L_blend counts where a uniform draw is above q."""
    always, never, often = (make(replace(CONFIG, blend_threshold=q)) for q in (0.0, 1.0, 0.7))
    assert step_of(always, 0)[1]["blend"] > 0
    assert step_of(never, 0)[1]["blend"] == 0
    torch.manual_seed(0)
    open_ = [bool(step_of(often, 0)[1]["blend"] > 0) for _ in range(200)]
    assert 0.2 < sum(open_) / 200 < 0.4


@pytest.mark.parametrize(("released", "mean_one"), [(False, False), (False, True), (True, False)])
def test_generators_terms(make: Make, teacher: nn.Module, released: bool, mean_one: bool) -> None:
    """Eqs. 1 and 12 with the frequencies so far, which then move by Eq. 10; as released they never do."""
    method = make(replace(CONFIG, released=released, reg_mean_one=mean_one))
    method.gan.frequency.counts.copy_(torch.tensor([1.0, 2.0, 3.0, 0.5]))
    counts = method.gan.frequency.counts.clone()
    images, terms = step_of(method, 1)
    judged = method.gan._alias[0](images)
    logits = teacher(2 * images - 1 if released else normalised(images))
    shares = F.softmax(logits, 1).mean(0)
    weights = torch.ones(4) if released else counts.sum() / counts
    if mean_one:
        weights = (1 / counts) / sum(1 / count for count in counts) * 4
    classes = F.log_softmax(judged.classes, 1)
    rows, labels = torch.arange(6), method.gan.labels
    gan_loss = -judged.scores.mean() if released else torch.log(1 - torch.sigmoid(judged.scores)).mean()
    expected = {
        "g_gan": gan_loss,
        "g_adc": (classes[rows, 2 * labels + 1] - classes[rows, 2 * labels]).mean(),
        "reg": sum(weights[c] * shares[c] * shares[c].log() for c in range(4)),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-9, atol=1e-9)
        (ours,) = torch.autograd.grad(terms[name], images, retain_graph=True)
        (theirs,) = torch.autograd.grad(value, images, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert ours.abs().max() > 0
    seen = torch.bincount(logits.argmax(1), minlength=4).double()
    torch.testing.assert_close(method.gan.frequency.counts, 0.5 * counts + 0.5 * seen)


def test_each_turn_trains_its_own_network(make: Make, runtime: Runtime) -> None:
    method = make()
    rounds = Rounds(method, runtime)
    begin_round(method, 0)
    for turn, (own, other) in enumerate([("discriminator", "generator"), ("generator", "discriminator")] * 2):
        before = {name: value.clone() for name, value in method.gan.named_parameters()}
        rounds.engines[turn % 2].step({})
        moved = {name for name, value in method.gan.named_parameters() if not torch.equal(value, before[name])}
        assert moved
        assert all(name.startswith(own) for name in moved), f"{other} moved in the turn of {own}"


def test_an_epoch_sees_every_collected_image(make: Make) -> None:
    """In another order each time, and on from the first where a batch goes over the end."""
    method = make(images=9)
    seen = []
    for epoch in range(2):
        begin_round(method, epoch)
        order = method.gan.order.clone()
        for _ in range(3):
            seen.append(order)
            method.gan.discriminator_step()
        assert int(method.gan.cursor) == 18
        assert sorted(order.tolist()) == list(range(9))
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize(("inflation", "repeats"), [(None, 2), (1, 1), (5, 5)])
def test_a_pass_has_each_collected_image_as_often_as_inflation_says(
    make: Make, runtime: Runtime, inflation: int | None, repeats: int
) -> None:
    """|D_s| generated images once, each collected one N = floor(|D_s| / |D_c|) times; in the pool each lies once."""
    method = make(replace(CONFIG, inflation=inflation))
    (plan,), batches = method.pools(), list(fill(method, runtime))
    assert len(batches) == plan.fill_batches == 4 + 2
    images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
    assert len(images) == plan.capacity == plan.fill_images == 20 + 9
    assert torch.equal(images[20:], method.gan.pixels.permute(0, 3, 1, 2).double() / 255)
    assert torch.equal(labels[20:], method.gan.pixel_labels)
    assert not any((image == own).all() for image in images[:20] for own in images[20:])
    assert method.gan.generator.training
    pool = Pool(29, (3, 16, 16), runtime=runtime, policy="ring")
    for batch in (method.hybrid.preview(images[:6]), *batches):  # the preview of a round is overwritten
        pool.add(batch.images, batch.labels, **batch.extras)
    sampler = EpochShuffle(len(pool), 10, seed=0, repeats=pool.repeats)
    assert sampler.size == images_in_a_pass(method.config, 9) == 20 + 9 * repeats
    drawn = torch.cat([sampler.draw().slots for _ in range(sampler.size)]).bincount()  # ten passes
    real = (torch.arange(6 + 20, 6 + 29)) % 29
    assert torch.equal(drawn[real], torch.full((9,), 10 * repeats))
    assert drawn.sum() - drawn[real].sum() == 200
    assert drawn.min() == 10


@pytest.mark.parametrize(
    ("preset", "flags", "steps"),
    [
        ("cifar10", [], (100, 1562)),
        ("cifar10", ["--collected-share", "1.0"], (1000, 1562)),
        ("cifar10", ["--collected-share", "0.3"], (300, 1484)),
        ("cifar10", ["--inflation", "1"], (100, 859)),
        ("cifar10", ["--inflation", "20"], (100, 2343)),
        ("cifar10", ["--inflation", "1", "--batch-size", "128"], (100, 430)),
        ("cifar10", ["--batch-size", "128"], (100, 781)),
        ("cifar10", ["--synthesis-batch-size", "50"], (200, 1562)),
        ("cifar10", ["--collected-share", "1.0", "--inflation", "2"], (1000, 2343)),
        ("cifar10", ["--collected-share", "1.0", "--synthesis-steps", "7", "--method.student-steps", "9"], (7, 9)),
        ("cinic", ["--collected-share", "1.0"], (1800, 2812)),
        ("ham10000", ["--collected-share", "1.0"], (160, 250)),
        ("tiny-imagenet", ["--collected-share", "1.0"], (2000, 3125)),
        ("imagenet", ["--collected-share", "1.0"], (25620, 10009)),
        ("imagenet", ["--synthetic-images", "128117"], (2562, 1001)),
        ("digits", ["--inflation", "1"], (40, 60)),
    ],
)
def test_counts_follow_share_and_inflation(
    capsys: pytest.CaptureFixture[str], preset: str, flags: list[str], steps: tuple[int, int]
) -> None:
    """Published counts at the published share; what a flag gives stays; what follows is said."""
    note.cache_clear()
    before = load_config(default_config("hidfd"), preset=preset).method
    recipe = load_config(default_config("hidfd"), preset=preset, flags=flags).method
    assert (recipe.synthesis_steps, recipe.student_steps) == steps
    said = capsys.readouterr().out
    for flag, old, new in zip(
        ("--synthesis-steps", "--student-steps"), (before.synthesis_steps, before.student_steps), steps, strict=True
    ):
        follows = new != old and not any(flag[2:] in given for given in flags)
        assert (f"{flag} {new} (not {old}) follows what else is changed; {flag} N sets it\n" in said) == follows


def test_counts_follow_in_a_file_over_a_preset_only(tmp_path: Path) -> None:
    """A recipe that is written as a whole, a run's config.toml too, has its counts."""
    file = tmp_path / "own.toml"
    file.write_text("collected_share = 0.2\n")
    load = partial(load_config, default_config("hidfd"), file=file)
    assert load(preset="cifar10").method.synthesis_steps == 200
    assert load().method.synthesis_steps == 100
    assert load(flags=["--collected-share", "0.1"]).method.synthesis_steps == 50
    file.write_text("collected_share = 0.2\n[method]\nsynthesis_steps = 10\n")
    assert load(preset="cifar10").method.synthesis_steps == 10
    plain = load_config(default_config("hidfd"), flags=["--collected-share", "0.5"]).method
    assert plain == HidfdConfig()


@pytest.mark.parametrize(("collected", "passes"), [(50_000, "0.1"), (2_500, "2"), (5_000, ""), (5_040, "")])
def test_a_gan_that_does_not_pass_once_over_its_images_says_so(
    capsys: pytest.CaptureFixture[str], collected: int, passes: str
) -> None:
    note.cache_clear()
    check_passes(HidfdConfig(), collected)
    said = capsys.readouterr().out
    assert (
        said.startswith(f"--synthesis-steps 100: an epoch of the GAN sees 5000 images, {passes} passes") or not passes
    )
    assert bool(said) == bool(passes)
    assert not passes or said.endswith(f"--synthesis-steps {collected // 50} is one pass\n")


@pytest.mark.parametrize("share", ["nan", "inf", "0", "-1", "1.5"])
def test_a_share_that_is_none_is_refused_before_counts_follow_it(
    capsys: pytest.CaptureFixture[str], share: str
) -> None:
    note.cache_clear()
    with pytest.raises(UserError, match=r"^--collected-share .*: choose a share above 0 and up to 1$"):
        load_config(default_config("hidfd"), preset="cifar10", flags=["--collected-share", share])
    assert not capsys.readouterr().out


def test_released_images_are_stretched(make: Make, runtime: Runtime) -> None:
    method = make(replace(CONFIG, released=True))
    images = next(fill(method, runtime)).images
    assert torch.allclose(images.amin((1, 2, 3)), torch.zeros(6).double())
    assert torch.allclose(images.amax((1, 2, 3)), torch.ones(6).double())


@pytest.mark.parametrize("alignment", ["simkd", "kd"])
def test_students_loss(make: Make, alignment: Any) -> None:
    """SimKD's mean squared difference of projected and teacher's maps; the ablation's KL of logits."""
    method = make(replace(CONFIG, alignment=alignment))
    logits, answers, maps, target = (torch.randn(*shape).double() for shape in [(5, 4)] * 2 + [(5, 32, 4, 4)] * 2)
    target = torch.randn(5, 64, 4, 4).double()
    batch = PoolBatch(torch.empty(5), torch.zeros(5).long(), torch.arange(5), {})
    terms = method.student_loss(batch, NetOutput(answers, target), NetOutput(logits, maps))
    if alignment == "kd":
        p, q = F.softmax(answers / 4, 1), F.softmax(logits / 4, 1)
        torch.testing.assert_close(terms["kd"], 16 * (p * (p / q).log()).sum(1).mean(), rtol=1e-9, atol=1e-9)
        assert deployed(method, nn.Identity()) is not None
        assert deployed_name(method, "cnn_s") == "cnn_s"
        return
    value = maps
    layers = list(method.sharing.projector.layers)
    for conv, norm, _relu in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        value = conv(value)
        mean, var = value.mean((0, 2, 3), keepdim=True), value.var((0, 2, 3), keepdim=True, unbiased=False)
        value = ((value - mean) / (var + norm.eps).sqrt()).clamp(min=0)
    torch.testing.assert_close(terms["align"], (value - target).square().mean(), rtol=1e-9, atol=1e-9)
    assert [layer.weight.shape[0] for layer in layers[::3]] == [32, 32, 64]


def test_pooled_alignment_is_equation_14(teacher: nn.Module, runtime: Runtime, make: Make) -> None:
    with pytest.raises(UserError, match=r"^--method\.alignment pooled: the student has 32 features, the teacher 64; "):
        make(replace(CONFIG, alignment="pooled"))
    collected = CollectedImages.noise(INFO, 9)
    setup = Setup(
        FrozenNet(teacher, INFO, runtime), frozen_alias(teacher), INFO, torch.empty(4, 0), collected=collected
    )
    method = Hidfd(replace(CONFIG, alignment="pooled"), setup)
    own, target = torch.randn(5, 64, 4, 4).double(), torch.randn(5, 64, 4, 4).double()
    batch = PoolBatch(torch.empty(5), torch.zeros(5).long(), torch.arange(5), {})
    found = method.student_loss(batch, NetOutput(own, target), NetOutput(own, own))["align"]
    torch.testing.assert_close(found, norms(own.mean((2, 3)), target.mean((2, 3))), rtol=1e-9, atol=1e-9)
    images = torch.randn(3, 3, 16, 16).double()
    torch.testing.assert_close(deployed(method, teacher)(images), teacher(images))
    assert deployed_name(method, "cnn") == "cnn+shared64"


@pytest.mark.parametrize("part", ["blend_weight", "trans_weight", "reg_weight"])
def test_ablations_leave_one_part_out(make: Make, part: str) -> None:
    """Table 2: the term is not computed, and the feature head is built only for who reads it."""
    method = make(replace(CONFIG, **{part: 0.0}))
    terms = step_of(method, 0)[1] | step_of(method, 1)[1]
    assert terms.keys() == set(GAN_TERMS) - {part.removesuffix("_weight")}
    neither = make(replace(CONFIG, blend_weight=0.0, trans_weight=0.0))
    assert neither.gan.discriminator.features is None
    assert {"blend", "trans"}.isdisjoint(step_of(neither, 0)[1])


def test_a_golden_trajectory(make: Make, runtime: Runtime) -> None:
    config = replace(CONFIG, synthesis_steps=10, blend_threshold=0.3)
    check_golden("hidfd", trajectory(make(config), runtime, epochs=2, terms=GAN_TERMS))


def test_learning_rate_falls_in_steps() -> None:
    rates = [student_lr(HidfdConfig(), 500 + epoch) for epoch in (0, 149, 150, 179, 180, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-5, 5e-5])


@pytest.mark.parametrize("name", [name for name in presets("hidfd") if "digits" not in name])
def test_an_epoch_is_one_pass(name: str) -> None:
    """Of the GAN over a tenth of the data, of the student over as many generated and as many inflated images."""
    recipe = load_config(default_config("hidfd"), preset=name).method
    assert recipe.synthesis_steps == 2 * (recipe.synthetic_images // 10 // recipe.synthesis_batch_size)
    assert recipe.student_steps == 2 * recipe.synthetic_images // recipe.batch_size
    assert recipe.epochs - recipe.warmup_epochs == 240
    assert recipe.batch_size == (256 if name == "imagenet" else 64)
    assert (recipe.crop_scale, recipe.flip) == ((1.0, False) if name == "ham10000" else (0.08, True))


@pytest.fixture
def finished(teacher_file: Path, tmp_path: Path) -> Path:  # noqa: F811
    config = tiny("hidfd", teacher_file, tmp_path / "run")
    return train(replace(config, data="digits"))


def test_the_deployed_student_is_a_file_like_any_other(
    finished: Path,
    teacher_file: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Student, projector and the teacher's classifier, rebuilt from the file alone; by run folder and by file."""
    file = finished / "student.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["dfkd_fast"])["name"] == "cnn_s+shared64x8"
    model, info = load_network(file)
    teacher, _ = load_network(teacher_file)
    assert torch.equal(model.classifier.weight, teacher.fc.weight)
    assert torch.equal(model.classifier.bias, teacher.fc.bias)
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, info.num_classes)
    record = json.loads((finished / "run.json").read_text())
    assert (record["data_free"], record["collected_images"]) == (False, 126)
    capsys.readouterr()
    for target in ([str(finished)], [str(file), "--data", "digits"]):
        assert main(["eval", *target, "--device", "cpu", "--threads", "1"]) == 0
        found = capsys.readouterr().out
        assert "cnn_s+shared64x8 on 539 images of digits" in found
        assert f"top-1 {record['top1_last']:.4f}" in found
    assert main(["eval", str(file), "--data", "digits", "--student", "cnn_s+shared9y"]) == 2
    assert capsys.readouterr().err.startswith("dfkd-fast: --student cnn_s+shared9y: +shared9y is no form of a shared ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 500}, r"--pool\.capacity 500: hidfd fills its pool once, .*; choose 156, or leave it out"),
        ({"policy": "append"}, r"--pool\.policy append: hidfd fills its pool once, .*; choose ring"),
    ],
)
def test_pools_that_cannot_be(
    teacher_file: Path,  # noqa: F811
    tmp_path: Path,
    settings: dict[str, Any],
    message: str,
) -> None:
    config = tiny("hidfd", teacher_file, tmp_path / "run")
    with pytest.raises(UserError, match=f"^{message}$"):
        train(replace(config, pool=replace(config.pool, **settings)))
    assert not (tmp_path / "run").exists()


def test_logits_alone_teach_no_features(teacher_file: Path, tmp_path: Path) -> None:  # noqa: F811
    config = replace(tiny("hidfd", teacher_file, tmp_path / "run"), cache_teacher_logits=1)
    with pytest.raises(UserError, match=r"^--cache-teacher-logits 1: this student learns from more than logits"):
        train(config)


def test_the_console_says_that_it_is_not_data_free(
    teacher_file: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(replace(tiny("hidfd", teacher_file, tmp_path / "run"), stop_after_epoch=1))
    assert "not strictly data-free: hidfd also learns from 126 real images of digits" in capsys.readouterr().out
    assert main(["ls", "methods"]) == 0
    assert any(" hidfd " in line and "real images" in line for line in capsys.readouterr().out.splitlines())


def test_the_collected_share_is_of_each_class(teacher_file: Path) -> None:  # noqa: F811
    config = load_config(default_config("hidfd"), preset="digits")
    _, info = load_network(teacher_file)
    whole, some = load_split("digits", "train"), load_collected(config, load_method("hidfd"), info)
    assert torch.equal(torch.bincount(some.labels), (torch.bincount(whole.labels) * 0.1).round().long())
    known = {image.numpy().tobytes() for image in whole.images}
    assert len({image.numpy().tobytes() for image in some.images} & known) == len(some)
    again = load_collected(replace(config, seed=5), load_method("hidfd"), info)
    assert torch.equal(some.images, again.images)


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("hidfd", ["--data", "digits"], "--collected: missing; hidfd is not strictly data-free, "),
        ("hidfd", ["--collected", "nowhere"], "--collected nowhere: no such folder or file"),
        ("hidfd", ["--collected", "digits", "--collected-share", "1.5"], "--collected-share 1.5: choose a share above"),
        ("hidfd", ["--collected", "digits", "--collected-share", "0"], "--collected-share 0.0: choose a share above"),
        ("fast", ["--collected", "digits"], "--collected digits: fast is data-free and takes no real images"),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, flags: list[str], message: str
) -> None:
    """One line, exit status 2, nothing written."""
    networks = ["--teacher", "cnn", "--student", "cnn_s", "--teacher-weights", "none.pt"]
    assert main(["train", method, *networks, *flags, "--run-dir", str(tmp_path / "run"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dfkd-fast: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_costs_are_those_of_both_turns(teacher_file: Path, tmp_path: Path) -> None:  # noqa: F811
    """A rehearsal needs no images; each network's steps count by themselves; filling the pool counts as images."""
    config = replace(tiny("hidfd", teacher_file, tmp_path / "run"), collected=None)
    _, info = load_network(teacher_file)
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    method, timings = profile_steps(config, info, runtime, TimingWindow(warmup=1, steps=1, samples=1))
    flops = count_step_flops(method, info, teacher=config.teacher, student=config.student)
    work = recipe_work(method, flops.round_steps)
    kinds = [SynthesisKind(turn, (), True) for turn in range(2)]
    assert work.synthesis_steps == dict(zip(kinds, (2, 1), strict=True))
    (plan,) = method.pools()
    assert work.images == 23 + plan.fill_images
    assert all(timings.synthesis[kind].median > 0 for kind in kinds)
    both = []
    for turn in range(2):
        small = replace(config.method, synthesis_steps=1)
        made = type(method)(
            small,
            Setup(
                method.gan.teacher,
                make_student(config, info, runtime).eval(),
                info,
                torch.empty(10, 0),
                collected=CollectedImages.noise(info),
            ),
        ).train()
        begin_round(made, 0)
        step = made.gan.generator_step if turn else made.gan.discriminator_step
        with FlopCounterMode(display=False) as counter:
            weighted_sum(step()[1], small).backward()
        both.append(counter.get_total_flops())
    assert both[0] != both[1]
    assert [flops.synthesis[kind] for kind in kinds] == pytest.approx(both, rel=1e-6)


def test_images_in_a_file_change_nothing(make: Make, runtime: Runtime, tmp_path: Path) -> None:
    """Two epochs of the GAN and what fills the pool, bit for bit, with batches that go over the end of the images."""
    pixels, labels = CollectedImages.noise(INFO, 9)
    path = tmp_path / "images.uint8"
    path.write_bytes(pixels.numpy().tobytes())
    made = []
    for source in (pixels, ImageRows(path, tuple(pixels.shape))):
        method = make(collected=CollectedImages(source, labels))
        found = trajectory(method, runtime, epochs=2, terms=GAN_TERMS)
        made.append([*found.values(), *(batch.images for batch in fill(method, runtime))])
        assert (method.gan.batch is None) == (source is pixels)
    for ours, theirs in zip(*made, strict=True):
        assert torch.equal(ours, theirs)
    assert len(made[0]) == 2 + 4 + 2
