"""Print the table of docs/reliability.md from what `make test SUITE=nightly` has found so far (build/faults)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "faults"


def main() -> None:
    """One row for each kind of fault; the newest results only."""
    newest = max(FOLDER.iterdir(), key=lambda folder: folder.stat().st_mtime)
    rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for file in sorted(newest.glob("*.jsonl")):
        case, _, fault = file.stem.partition(", ")
        for line in file.read_text(encoding="utf-8").splitlines():
            rows[fault, case][json.loads(line)["found"].partition(":")[0]] += 1
    print("| fault | run | tried | same result | survived at once | one line, nothing lost | wrong |")
    print("|---|---|---|---|---|---|---|")
    for (fault, case), found in sorted(rows.items()):
        wrong = found.total() - found["same"] - found["survived"] - found["refused"]
        counts = (found.total(), found["same"], found["survived"], found["refused"], wrong)
        print(f"| {fault} | {case} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
