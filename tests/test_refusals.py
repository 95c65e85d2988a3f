"""The machine's refusals end in one line, not in a traceback; a bug keeps its traceback."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from dfkd_fast.cli import eval as eval_command
from dfkd_fast.cli.main import main
from dfkd_fast.messages.refusals import refusal


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.EMFILE, errno.ELOOP])
def test_a_file_that_cannot_be_had_is_named(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> int:
        raise OSError(code, os.strerror(code), "data/x\n.png")

    monkeypatch.setattr(eval_command, "run", run)
    assert main(["eval", "x"]) == 2
    assert capsys.readouterr().err == f"dfkd-fast: data/x\\n.png: {os.strerror(code).lower()}\n"


def test_torchs_message_of_the_memory_becomes_ours() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert refusal(caught.value) == (
        "out of memory (asked for 1,125,899.91 GB at once); choose a smaller batch, smaller images, or a machine with "
        "more of it"
    )
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**40, 2**40)
    assert (refusal(caught.value) or "").startswith("out of memory")
    assert (refusal(MemoryError()) or "").startswith("out of memory")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for bug in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError("no file"), ValueError("x")):

        def run(arguments: object, bug: Exception = bug) -> int:
            raise bug

        monkeypatch.setattr(eval_command, "run", run)
        with pytest.raises(type(bug)):
            main(["eval", "x"])
