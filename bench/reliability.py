"""Print the table of docs/reliability.md from what `make test SUITE=nightly` has found so far (build/faults)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "faults"


CASES = ("pool", "stepwise", "teacher", "resume")


def main() -> None:
    """One row for each kind of fault; the newest results only."""
    newest = max(FOLDER.iterdir(), key=lambda folder: folder.stat().st_mtime)
    found, tried = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    for file in sorted(newest.glob("*.jsonl")):
        case, _, fault = file.stem.partition(", ")
        for line in file.read_text(encoding="utf-8").splitlines():
            found[fault][json.loads(line)["found"].partition(":")[0]] += 1
            tried[fault][case] += 1
    print(f"| fault | tried ({', '.join(CASES)}) | same result | survived at once | one line, nothing lost | wrong |")
    print("|---|---|---|---|---|---|")
    for fault, counts in found.items():
        wrong = counts.total() - counts["same"] - counts["survived"] - counts["refused"]
        each = ", ".join(str(tried[fault][case]) for case in CASES)
        cells = (f"{counts.total()} ({each})", counts["same"], counts["survived"], counts["refused"], wrong)
        print(f"| {fault} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
