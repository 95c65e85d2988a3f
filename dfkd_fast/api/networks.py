"""Students in Python: loading one."""

from __future__ import annotations

from pathlib import Path

from dfkd_fast.config.sections import SavedNetworkInput
from dfkd_fast.models.normalized import NormalizedNetwork
from dfkd_fast.training.saved import load_saved


def load_student(path: str | Path) -> NormalizedNetwork:
    """The student of a run folder, or the network in a file that dfkd-fast wrote, on the CPU and in evaluation mode.

    Takes float images (B, C, H, W) in [0, 1], which it normalises itself, and answers with logits (B, K); `.network` is
    the network alone, `.info` what it expects, class names included. Of a run that has not ended it is the newest
    checkpoint's. Raises UserError for whatever cannot be read, is damaged, or has not been taught yet.
    """
    model, info, _, _ = load_saved(Path(path), SavedNetworkInput(), flag="load_student")
    return NormalizedNetwork(model, info).eval()
