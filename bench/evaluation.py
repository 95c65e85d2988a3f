"""`make bench SUITE=evaluation`: what decodes test images fastest, NVIDIA DALI or Pillow.

Both decode the same JPEGs (500 x 375, made here), cut out the middle 224 pixels of 256 and take turns, with one thread
each. Images per second of processor time, all threads together, and how far their pixels are apart go to
bench/results/evaluation-cpu.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfkd_fast.data.splits import load_test_split
from dfkd_fast.data.stream import Decoding, ImageStream
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.training.records.run_record import machine_record

RESULTS = Path(__file__).resolve().parent / "results" / "evaluation-cpu.jsonl"
CHOICES = ("dali", "pil")
CLASSES = ("n00000001", "n00000002")  # ImageNet's way of naming classes: its statistics need no image


def write_photographs(root: Path, count: int) -> None:
    """Pictures that compress about as photographs do: smooth shapes under a fine grain."""
    rng = np.random.default_rng(0)
    for index in range(count):
        folder = root / CLASSES[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(scale=8, size=smooth.shape)
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)


def seconds_of(images: ImageStream) -> float:
    """Processor time of one pass over all images."""
    start = time.process_time()
    for _ in images.batches(50):
        pass
    return time.process_time() - start


def main() -> None:
    """Race the decoders; print and append a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    runtime = make_runtime(device="cpu", threads=1)
    streams: dict[str, ImageStream] = {}
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
        write_photographs(Path(folder), options.images)
        size = statistics.mean(file.stat().st_size for file in Path(folder).rglob("*.jpg"))
        for name in CHOICES:
            decoding = Decoding(decoder=name, workers=1)
            found = load_test_split(folder, image_size=224, decoding=decoding, device=runtime.device, in_memory=0)
            assert isinstance(found, ImageStream)
            streams[name] = found
        first = {name: torch.cat([batch for batch, _ in images.batches(50)]) for name, images in streams.items()}
        apart = (first["dali"].int() - first["pil"].int()).abs()
        turns = [{name: seconds_of(images) for name, images in streams.items()} for _ in range(options.turns)]
    line = {
        "images": options.images,
        "kilobytes_per_file": size / 1000,
        **{f"{name}_per_cpu_second": options.images / statistics.median(t[name] for t in turns) for name in CHOICES},
        "dali_over_pil": statistics.median(turn["pil"] / turn["dali"] for turn in turns),
        "grey_levels_apart": {"most": apart.max().item(), "mean": apart.float().mean().item()},
        "samples": turns,
        **machine_record(runtime),
    }
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    speeds = ", ".join(f"{name} {line[f'{name}_per_cpu_second']:.0f}" for name in CHOICES)
    print(f"images per second of processor time: {speeds}, {line['dali_over_pil']:.2f} times")
    print(f"at most {apart.max()} grey levels apart, {apart.float().mean():.2f} in the mean")


if __name__ == "__main__":
    main()
