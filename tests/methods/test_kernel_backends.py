"""Every method's terms through each kernel backend: float32 against float64 on the reference, values and gradients.

The reference itself is compared with the papers' equations to 1e-9 in each method's own tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from inspect import signature

import pytest
import torch
from torch import Tensor
from toy_networks import INFO, lived_in

from dfkd_fast.catalog import METHODS
from dfkd_fast.config.sources import default_config
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.methods.base import CollectedImages, Inner, Method, Setup
from dfkd_fast.models.teacher import FrozenNet, NetOutput, frozen_alias
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.text.label_embeddings import label_embeddings
from dfkd_fast.training.assemble import load_method
from dfkd_kernels import backend as kernels

BATCH = 10
SMALL = {"synthesis_batch_size": BATCH, "batch_size": BATCH, "generator_width": 8, "noise_features": 8}
SMALL |= {"latent_dim": 8, "buffer_size": 20, "bank_size": 20, "crop_padding": 0, "flip": False, "reset_epoch": 0}
SMALL |= {"jitter": 0, "jitter_flip": False, "contrastive_weight": 0.0, "image_sizes": (16,), "batch_shares": (1,)}
SMALL |= {"colour_jitter": 0.0, "cutmix_probability": 0.0}  # drawn in the images' dtype: other numbers in another
SMALL |= {"outer_radius": 50.0, "cam_peak": 3.0, "blend_threshold": 0.0}  # every hinge and gate open
TERMS = {"hidfd": {"d_gan", "d_adc", "blend", "trans", "g_gan", "g_adc", "reg"}}
TERMS |= {"dafl": {"ce", "balance", "act"}, "zskt": {"adv"}, "dfad": {"adv"}, "procedural": {"ce"}}
"""what a method's step must have, where it is not a label, a BN and an adversarial term"""
# Through Triton's interpreter, which takes seconds, the methods that use every operator.
COMBINATIONS = [(name, "native") for name in METHODS if name != "kd"]  # which has no synthesis steps
COMBINATIONS += [(name, "triton") for name in ("muse-s", "ssdkd")]


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    for op in kernels.OPS:
        reason = kernels.why_not(op, request.param, "cpu", torch.float32)
        if reason and op in ("bn_act_moments", "bn_stat_loss", "kd_kl", "cam_margin", "priority"):
            pytest.skip(f"{op}: {reason}")
        if not reason:
            kernels.use(request.param, op=op)
    yield request.param
    kernels.use("auto")


def build(name: str, precision: str) -> tuple[Method, Runtime]:
    """A method on the toy networks, with the same weights in every precision."""
    runtime = make_runtime(device="cpu", precision=precision)
    teacher, student = (lived_in(spec, seed).to(runtime.master_dtype) for spec, seed in (("cnn", 1), ("cnn_s", 5)))
    vectors = label_embeddings("orthogonal", INFO.num_classes, dim=8).to(runtime.master_dtype)
    torch.manual_seed(2)
    collected = CollectedImages.noise(INFO, 15)
    setup = Setup(FrozenNet(teacher, INFO, runtime), frozen_alias(student), INFO, vectors, collected=collected)
    config = default_config(name).method
    known = {item.name for item in fields(config)}
    small = SMALL | ({"image_sizes": (12, 16), "batch_shares": (1, 1)} if name == "muse" else {})
    config = replace(config, **{key: value for key, value in small.items() if key in known})
    # by 3 a value of hidfd's discriminator lies within float32's rounding of the kink of its ReLU
    torch.manual_seed(6 if name == "hidfd" else 3)
    method = load_method(name)(config, setup)
    return runtime.place(method).train(), runtime  # type: ignore[return-value]


def gradients_of_terms(name: str, precision: str) -> dict[str, Tensor]:
    """Each term of a step, late enough for all of them, on fixed images, and its gradient with respect to these."""
    method, runtime = build(name, precision)
    found: dict[str, Tensor] = {}
    for maker in getattr(method, "scales", [getattr(method, "gan", method)]):  # what holds generator and labels
        steps = [inner for inner in vars(maker).values() if isinstance(inner, Inner)]
        for inner in steps:
            inner.optimizers()  # only now do pixels ask for gradients
        if name == "hidfd":
            maker.shuffle()
        maker.labels.copy_(torch.arange(len(maker.labels)) % INFO.num_classes)
        size = getattr(maker, "info", method.info).image_size.short
        images = fixed_images(len(maker.labels), size).to(runtime.master_dtype).requires_grad_()
        if hasattr(maker, "generator"):
            made = (images, ()) if name == "spaceshipnet" else images  # with no maps
            if name == "cpnet":
                with torch.no_grad():
                    made = (images, maker.generator(maker.label_embeddings[maker.labels])[1])
            maker.generator.forward = lambda *_, made=made: made
        else:
            images = maker.pixels
            with torch.no_grad():
                images.copy_(fixed_images(len(images), 16))
        terms: dict[str, Tensor] = {}
        for inner in steps:
            torch.manual_seed(0)
            late = {"adversarial": True} if "adversarial" in signature(inner.step).parameters else {}
            terms |= inner.step(**late)[1]
        for term, value in terms.items():
            if (name, term) == ("cpnet", "inversion"):  # of the generator's own maps, which are no images'
                continue
            (gradient,) = torch.autograd.grad(value, images, retain_graph=True)
            found[f"{size} {term}"] = value.detach()
            found[f"{size} {term} gradient"] = gradient
    return found


def fixed_images(count: int, size: int) -> Tensor:
    torch.manual_seed(0)
    colour = 2 * torch.randn(count, 3, 1, 1, dtype=torch.float64)  # so that predictions differ, and some agree
    return torch.randn(count, 3, size, size, dtype=torch.float64) + colour


@pytest.mark.parametrize(("name", "backend"), COMBINATIONS, indirect=["backend"])
def test_terms_and_image_gradients(name: str, backend: str) -> None:
    exact = gradients_of_terms(name, "fp64")  # float64 runs on the reference
    found = gradients_of_terms(name, "fp32")
    assert exact.keys() == found.keys()
    adversary = {"adv"} if hasattr(default_config(name).method, "adv_weight") else set()
    assert {key.split()[1] for key in exact} >= TERMS.get(name, {"ce", "bn"} | adversary)
    for key, expected in exact.items():
        scale = expected.abs().max().item()
        assert scale > 0, key
        torch.testing.assert_close(found[key].double(), expected, rtol=1e-4, atol=1e-4 * scale, msg=f"{key}: off")


@pytest.mark.parametrize("backend", ["native", "triton"], indirect=True)
def test_student_loss_and_new_priorities_of_ssdkd(backend: str) -> None:
    """The one student loss that is a kernel of its own: loss, gradient and priorities in one pass."""
    results = []
    for precision in ("fp64", "fp32"):
        method, runtime = build("ssdkd", precision)
        (plan,) = method.pools()
        plan.opened(Pool(20, (3, 16, 16), runtime=runtime, num_classes=INFO.num_classes, policy="ring"))
        method.priorities.update(torch.arange(20), torch.arange(1.0, 21.0) / 20)
        torch.manual_seed(0)
        student, teacher, weights = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.rand(6) + 0.5
        logits = student[0].to(runtime.master_dtype).requires_grad_()
        slots = torch.tensor([3, 7, 3, 19, 0, 5])
        batch = PoolBatch(torch.empty(6, 3, 16, 16), torch.zeros(6).long(), slots, {}, weights)
        loss = method.student_loss(batch, NetOutput(teacher[0].to(runtime.master_dtype)), NetOutput(logits))["kd"]
        (gradient,) = torch.autograd.grad(loss, logits)
        results.append((loss.detach().double(), gradient.double(), method.priorities.leaves.double().clone()))
    for exact, found in zip(*results, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
