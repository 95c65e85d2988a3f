"""Record the toolkit's own steps as they run: terms, gradients, weights, and random draws.

Steps run in float64 (`precision="fp64"`, which the command line does not offer), on one thread, by the loops' own
`InnerLoop` and `StudentTrainer`; the networks are small enough that no kernel is replaced by another.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from plain import Adam, Sgd, State, gradients, look
from rounds import Rounds
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from toy_networks import INFO
from traces import Trace

from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.methods.base import Inner, Method, MethodConfig, Setup, SynthBatch
from dfkd_fast.methods.inner import inners
from dfkd_fast.models.small import ConvNet
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.text.label_embeddings import label_embeddings
from dfkd_fast.training.student import StudentSteps, make_trainer

_DRAWS = {"rand", "randn", "randn_like", "randint", "randperm", "normal_", "random_"}


class Arena(NamedTuple):
    """Two small networks and what a method is built from."""

    teacher: nn.Module
    student: nn.Module
    setup: Setup
    runtime: Runtime

    def method(self, cls: Any, config: MethodConfig) -> Any:
        torch.manual_seed(3)
        return self.runtime.place(cls(config, self.setup)).train()

    def trainer(self, method: Method, capacity: int = 40) -> Any:
        """What trains the student, with an empty pool for each image size."""
        pools = {}
        for plan in method.pools():
            size = plan.image_size
            pools[size] = Pool(capacity, (3, *size), runtime=self.runtime, num_classes=4, policy=plan.policy)
        frozen, pool = self.setup.teacher, MultiPool(pools)
        return make_trainer(self.student, method=method, teacher=frozen, pool=pool, runtime=self.runtime)


def batch_of(images: Tensor, labels: Tensor | None = None, **more: Any) -> PoolBatch:
    """A batch as the pool hands it out, augmented and normalised."""
    slots = torch.arange(len(images))
    labels = slots % INFO.num_classes if labels is None else labels
    return PoolBatch(images, labels, slots, more.pop("extras", {}), **more)


def arena(student_width: int = 8, **more: Any) -> Arena:
    """The same networks at each call, whose predictions agree on some images and not on others."""
    torch.set_num_threads(1)
    teacher, frozen, runtime = _teacher()
    student = _network((4, 6, student_width), seed=5)
    with torch.no_grad():  # as if it had begun to learn
        seen, wanted = look(state_of(student), views(60)).pooled, teacher(views(60))
        fitted = torch.linalg.lstsq(torch.cat([seen, torch.ones(60, 1).double()], dim=1), wanted).solution
        student.fc.weight.copy_(fitted[:-1].T)
        student.fc.bias.copy_(fitted[-1])
    embeddings = label_embeddings("orthogonal", INFO.num_classes, dim=8).double()
    return Arena(teacher, student, Setup(frozen, frozen_alias(student), INFO, embeddings, **more), runtime)


@functools.cache
def _teacher() -> tuple[nn.Module, FrozenNet, Runtime]:
    """Made once: nothing trains it."""
    runtime = make_runtime(device="cpu", precision="fp64")
    teacher = _network((6, 8, 10), seed=1)
    return teacher, FrozenNet(teacher, INFO, runtime), runtime


@torch.no_grad()
def _network(widths: tuple[int, int, int], seed: int) -> nn.Module:
    """Statistics of coloured images, but for some noise, and classes that come up about equally often among them."""
    torch.manual_seed(seed)
    net = ConvNet(widths, INFO.num_classes, 3).double().eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
        norm.momentum = 1.0
    net.train()(views(60))
    net.eval()
    for norm in norms:
        norm.momentum = 0.1
        norm.running_mean += 0.2 * torch.randn(norm.running_mean.shape)
        norm.running_var *= 0.8 + 0.4 * torch.rand(norm.running_var.shape)
    seen = views(60)
    net.fc.weight *= 2 / net(seen).std(0).mean()
    net.fc.bias -= net(seen).mean(0)
    return net


def state_of(module: nn.Module) -> State:
    """A copy of its floating-point tensors, those that are trained ready for gradients."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in tensors.items()
        if value.is_floating_point()
    }


def normalised(images: Tensor) -> Tensor:
    """As the teacher sees them; the constants are stored in float32."""
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (INFO.mean, INFO.std))
    return (images - mean) / std


def views(count: int, seed: int = 0, side: int = 16) -> Tensor:
    """A normalised student batch of strong colours."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.randn(count, 3, 1, 1, generator=generator).double()
    return torch.randn(count, 3, side, side, generator=generator).double() * 0.5 + colour


class Drawn(TorchFunctionMode):
    """Everything that is drawn while it is on, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.values: deque[Tensor] = deque()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _DRAWS:
            self.values.append(out.detach().clone())
        return out


class Start(NamedTuple):
    """What a round starts from, its resets done, what its steps then drew, and what it left to the pool."""

    state: State
    labels: Tensor
    drawn: deque[Tensor]
    left: SynthBatch


def follow_round(
    rounds: Rounds, epoch: int, index: int, trace: Trace, parts: Sequence[str] = (), name: str = "round"
) -> Start:
    """One round of ours, called `name` in the trace. `parts`: prefixes of the trained weights that are compared; by
    default all that the steps train.
    """
    method, drawn, key = rounds.method, Drawn(), f"{name} {epoch}.{index}"
    starts: list[tuple[State, Tensor]] = []

    def run(inner: Inner, *where: Any, **variant: Any) -> Any:
        if not starts:  # its resets are done
            starts.append((state_of(method), method.labels.clone() if hasattr(method, "labels") else torch.empty(0)))
            drawn.values.clear()
        return Inner.run(inner, *where, **variant)

    steps = 0

    def on_step(terms: State, _images: int) -> None:
        nonlocal steps
        trace.update({f"{key} step {steps} {name}": value.clone() for name, value in terms.items()})
        _note(trace, f"{key} step {steps}", trained(method, parts))
        steps += 1

    with ExitStack() as patched, drawn:
        for inner in inners(method):
            patched.enter_context(patch.object(inner, "run", functools.partial(run, inner)))
        batch = rounds.round(epoch, index, on_step)
    trace[f"{key} images"] = batch.images.clone()
    (state, labels) = starts[0]
    return Start(state, labels, drawn.values, batch)


def trained(method: nn.Module, parts: Sequence[str] = ()) -> dict[str, Tensor]:
    """Its tensors that have got a gradient: weights, and pixels that are no parameters."""
    tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    wanted = {name: value for name, value in tensors.items() if not parts or name.startswith(tuple(parts))}
    return {name: value for name, value in wanted.items() if value.requires_grad and value.grad is not None}


def _note(trace: Trace, key: str, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        assert value.grad is not None, name
        trace[f"{key} gradient {name}"] = value.grad.clone()
        trace[f"{key} weight {name}"] = value.detach().clone()


def follow_student(
    trainer: StudentSteps, epoch: int, batches: Sequence[PoolBatch | list[PoolBatch]], trace: Trace, first: int = 0
) -> None:
    """Student steps of ours on given batches, several at once for several image sizes: terms, gradients, weights and
    running statistics after each. `first`: number of the first in the trace.
    """
    trainer.begin_epoch(epoch)
    for step, batch in enumerate(batches, start=first):
        inputs = {part.images.shape[-1]: part for part in (batch if isinstance(batch, list) else [batch])}
        terms = trainer.run_step(trainer.method.student_variant(), inputs)
        note_student(trace, f"student {epoch} step {step}", trainer, terms)


def note_student(trace: Trace, key: str, trainer: StudentSteps, terms: State) -> None:
    """What one of our student steps has left."""
    side = trainer.method.student_head()
    trace.update({f"{key} {name}": value.clone() for name, value in terms.items()})
    _note(trace, key, trained(trainer.student))
    _note(trace, key, {f"side.{name}": value for name, value in (trained(side) if side is not None else {}).items()})
    if side is not None:
        note_statistics(trace, f"{key} side", dict(side.named_buffers()))
    note_statistics(trace, key, dict(trainer.student.named_buffers()))


def descend(
    trace: Trace,
    key: str,
    terms: State,
    loss: Tensor,
    net: State,
    optimizer: Adam | Sgd,
    lr: float | dict[str, float],
    prefix: str = "",
) -> State:
    """One step of the independent statement: the gradients of the loss, what they make of the trained tensors of
    `net`, and both in the trace under the names that ours have there (`prefix`).
    """
    grads = gradients(loss, net, [name for name, value in net.items() if value.requires_grad])
    optimizer.step(net, grads, lr)
    trace.update({f"{key} {name}": value.detach() for name, value in terms.items()})
    trace.update({f"{key} gradient {prefix}{name}": value for name, value in grads.items()})
    trace.update({f"{key} weight {prefix}{name}": net[name].detach().clone() for name in grads})
    return grads


def note_statistics(trace: Trace, key: str, student: State) -> None:
    """The student's running statistics."""
    trace.update({f"{key} {name}": value.clone() for name, value in student.items() if "running" in name})
