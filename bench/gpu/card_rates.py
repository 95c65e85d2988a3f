"""Rates of kernels of each kind on the card: its entry in the table by which `--on` predicts.

Writes the table with the card's own rates to OUT_DIR/cards.toml, and over the checkout's. A rehearsal on a CPU writes
the first alone, a few points as those of an L4.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "roofline"))

import torch
from calibrate import calibrate
from step_report import StepReport, open_report

from dfkd_fast.costs.cards import key_for, read_card, table_file, with_measured
from dfkd_fast.device.runtime import has_fast_bf16
from dfkd_fast.device.switches import set_switches

LARGER = 8
"""images of a batch and values of a tensor, as many times those of a CPU: a card is to be busy"""


def measure(report: StepReport) -> None:
    """A row: which card it is, and how many kinds of kernels have points."""
    if report.rehearse:
        torch.set_num_threads(1)
        key, name, dtypes = "l4", "rehearsal", [torch.float32]
        measured = calibrate("cpu", dtypes, share=0.05, repeats=1)
    else:
        properties = torch.cuda.get_device_properties(0)
        name, found = properties.name, key_for(properties.name, properties.total_memory / 1e9)
        if found is None:
            report.not_run(name, "not a card of dfkd_fast/costs/cards.toml: add its datasheet there first")
            return
        key, half = found, torch.bfloat16 if has_fast_bf16(torch.device("cuda")) else torch.float16
        set_switches(torch.device("cuda"), "fp32", deterministic=False)  # float32 is measured as such
        measured = calibrate("cuda", [half, torch.float32], repeats=3, larger=LARGER)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = with_measured(table_file().read_text(encoding="utf-8"), key, {"on": today} | measured)
    written = report.folder / "cards.toml"
    written.write_text(text, encoding="utf-8")
    if not report.rehearse:
        table_file().write_text(text, encoding="utf-8")
        assert read_card(key).measured, "the table that was written is not read back"
    kinds = sorted(kind for kind in measured if "/" in kind)
    report.row(name, ok=bool(kinds), card=key, kinds=len(kinds), file=str(written.name))


def main() -> int:
    """The only row."""
    report = open_report("rates", __doc__)
    measure(report)
    return report.status()


if __name__ == "__main__":
    sys.exit(main())
