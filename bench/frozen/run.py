"""`make bench SUITE=frozen`: a frozen network with the statistics loss against what people have, network by network.

Forward and input gradient on one thread, in processor time, by turns: ours, NVlabs' hooks, `torch.compile` with
var_mean in the graph, and the network without the loss. A line for each network and dtype goes to
bench/results/frozen-networks-cpu.jsonl; what has one is left out, so a run that was stopped goes on where it was.

Compiling takes minutes a network, and is a pass of its own: `run.py --compile` fills Inductor's cache below
build/frozen-networks, one network after the other, as long as it is left to. A race takes the compiled form where it is
in that cache; lines without it are measured anew once it is. `run.py --table` prints table and shortfalls alone,
`--docs` writes them into docs/performance.md.

`run.py --answers` compares logits without gradients: the network, frozen, and frozen for answers with its BatchNorms
folded; lines go to bench/results/frozen-answers-cpu.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
RESULTS = BENCH / "results" / "frozen-networks-cpu.jsonl"
ANSWERS = RESULTS.with_name("frozen-answers-cpu.jsonl")
DOCUMENT = BENCH.parent / "docs" / "performance.md"
CACHE = BENCH.parent / "build" / "frozen-networks"
COMPILED = "compiled.jsonl"
sys.path[:0] = [str(BENCH / "frozen"), str(BENCH / "kernels")]

import table  # noqa: E402
from networks import DTYPES, NETWORKS, why_not  # noqa: E402

LONGEST = 3600.0
"""seconds that one network may take, wall time"""


def main() -> None:
    """Compile or race what has not been, then print the table."""
    options = _options()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(options.cache / "inductor")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    keys = list(itertools.product(options.networks, options.dtypes))
    for name in [name for name in options.networks if why_not(name)]:
        print(f"{name}: left out, {why_not(name)}")
        keys = [key for key in keys if key[0] != name]
    if options.answers:
        results = ANSWERS if options.results == RESULTS else options.results

        def answer(name: str, dtype: str) -> dict[str, Any]:
            return _answers(name, dtype, options.seconds)

        _each(keys, results, answer, lambda key, line: options.again or _is_due(line, compiled=False))
        return
    if options.compile:
        _each(keys, options.cache / COMPILED, _compile, lambda key, line: line is None)
    elif not (options.table or options.docs):
        ready = {key for key, line in table.read(options.cache / COMPILED).items() if "error" not in line}

        def work(name: str, dtype: str) -> dict[str, Any]:
            return _race(name, dtype, (name, dtype) in ready, options.seconds)

        _each(keys, options.results, work, lambda key, line: options.again or _is_due(line, key in ready))
    lines = table.read(options.results)
    measured = [lines[key] for key in keys if key in lines and "error" not in lines[key]]
    if options.docs:
        DOCUMENT.write_text(table.document(DOCUMENT.read_text(encoding="utf-8"), measured), encoding="utf-8")
    print(table.markdown(measured))
    print("\n".join(table.summary(measured)))
    print("\n".join(table.shortfalls(measured)) or "nothing falls short")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--compile", action="store_true", help="fill the cache of compiled forms, measure nothing")
    parser.add_argument("--answers", action="store_true", help="measure logits without gradients instead")
    parser.add_argument("--table", action="store_true", help="print what is there, measure nothing")
    parser.add_argument("--docs", action="store_true", help="the same, and write it into docs/performance.md")
    parser.add_argument("--again", action="store_true", help="measure what has a line, too")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each race, warm-up apart")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    options.networks = options.networks or list(NETWORKS)
    return options


def _is_due(line: Mapping[str, Any] | None, compiled: bool) -> bool:
    return line is None or "error" in line or (compiled and "compiled" not in line["seconds"])


def _each(
    keys: list[table.Key],
    path: Path,
    work: Callable[[str, str], dict[str, Any]],
    is_due: Callable[[table.Key, Mapping[str, Any] | None], bool],
) -> None:
    """Work on one after the other, each in a process of its own, and append its line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = table.read(path)
    for key in keys:
        if not is_due(key, lines.get(key)):
            continue
        name, dtype = key
        line = {"network": name, "dtype": dtype, **_in_a_process(work, key)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(name, dtype, line.get("error") or line.get("ratios") or line, flush=True)


def _in_a_process(work: Callable[[str, str], dict[str, Any]], key: table.Key) -> dict[str, Any]:
    """What `work` makes of a key in a fork; how it failed, as `error`."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def serve() -> None:
        try:
            there.send(work(*key))
        except Exception as error:
            there.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})

    process = context.Process(target=serve)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(LONGEST) else {"error": f"took more than {LONGEST:.0f} s"}
    except EOFError:
        process.join()
        return {"error": f"its process ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _compile(name: str, dtype: str) -> dict[str, Any]:
    from race import compile_once

    return compile_once(name, dtype)


def _race(name: str, dtype: str, compiled: bool, seconds: float) -> dict[str, Any]:
    from race import race

    return {**race(name, dtype, compiled=compiled, seconds=seconds), **_machine()}


def _answers(name: str, dtype: str, seconds: float) -> dict[str, Any]:
    from race import answers

    return {**answers(name, dtype, seconds=seconds), **_machine()}


def _machine() -> dict[str, Any]:
    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.records.run_record import machine_record

    where = machine_record(make_runtime(device="cpu", channels_last=True, threads=1))
    where.pop("precision")
    return where


if __name__ == "__main__":
    main()
