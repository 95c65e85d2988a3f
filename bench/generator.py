"""The generators' forward and backward: upsample then convolve, both in one, and the latter through torch.compile.

    OMP_NUM_THREADS=1 python bench/generator.py [--rounds 9] [--compile]

One thread, variants interleaved, medians of this process's processor time. Each case is appended as one JSON line to
bench/results/generator-<device>.jsonl. --compile adds the compiled variant: minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from kernels.report import machine
from kernels.timing import Race

from dfkd_fast.device.compilation import CLOCK, compiled
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.generators.layers import UpsampleConv2d
from dfkd_fast.generators.noisy import NoisyEmbeddingGenerator

RESULTS = Path(__file__).parent / "results"
CASES = {"nayer, 32 px": (100, 32, 100), "muse-s, 112 px": (20, 112, 1000)}
"""name -> batch, image size, classes"""


def plain_form(generator: nn.Module) -> nn.Module:
    """The same network with the same weights, upsampling and convolving one after the other."""
    plain = copy.deepcopy(generator)
    for parent in [*plain.modules()]:
        for name, layer in parent.named_children():
            if isinstance(layer, UpsampleConv2d):
                conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=False)
                conv.weight = layer.weight
                setattr(parent, name, nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv))
    return plain


def training_pass(
    generator: nn.Module, forward: Callable[..., torch.Tensor], embeddings: torch.Tensor, runtime: Runtime
) -> Callable[[], None]:
    """Images and the gradients of all weights."""

    def run() -> None:
        generator.zero_grad(set_to_none=True)
        with runtime.autocast():
            images = forward(embeddings)
        images.square().mean().backward()

    return run


def measure(case: str, precision: str, *, rounds: int, compile_too: bool) -> dict[str, object]:
    """Medians in seconds by variant, and their ratios to the plain form's."""
    batch_size, image_size, num_classes = CASES[case]
    runtime = make_runtime(precision=precision, channels_last=True, threads=1)
    torch.manual_seed(0)
    folded = NoisyEmbeddingGenerator(512, image_size, batch_size=batch_size, num_classes=num_classes)
    networks = {"plain": runtime.place(plain_form(folded)), "folded": runtime.place(folded)}
    embeddings = torch.randn(batch_size, 512, device=runtime.device)
    variants = {name: training_pass(net, net, embeddings, runtime) for name, net in networks.items()}
    before = CLOCK.seconds
    if compile_too:
        own = copy.deepcopy(folded)
        variants["folded, compiled"] = training_pass(own, compiled(own, "default"), embeddings, runtime)
    race = Race(variants, runtime.device, inner=1)
    race.warm_up(2)
    for _ in range(rounds):
        race.round()
    medians = {name: statistics.median(samples) for name, samples in race.seconds.items()}
    plain = race.seconds["plain"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(plain, samples, strict=True))
        for name, samples in race.seconds.items()
        if name != "plain"
    }
    preparing = CLOCK.seconds - before
    return {"case": case, "precision": precision, "seconds": medians, "ratios": ratios, "compile_seconds": preparing}


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for case in CASES:
        for precision in ("fp32", "bf16"):
            found = measure(case, precision, rounds=options.rounds, compile_too=options.compile)
            print(found, flush=True)
            with (RESULTS / f"generator-{device}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({**found, **machine(torch.device(device))}) + "\n")


if __name__ == "__main__":
    main()
