"""The choice of backend: the options, the table and its reasons, and that importing the package does no work."""

import subprocess
import sys

import pytest
import torch
from operator_contract import DEVICE

import dfkd_kernels
from dfkd_kernels import backend, backends, bn_act_moments, use


@pytest.fixture(autouse=True)
def restored_choice():
    yield
    use("auto")


def test_every_op_has_a_row_for_every_backend():
    rows = backends()
    assert {(row.op, row.backend) for row in rows} == {
        (op, name) for op in backend.OPS for name in ("reference", "triton", "native")
    }
    for row in rows:
        assert row.available == (row.reason == "")
        assert not (row.active and not row.available)
    for op in backend.OPS:
        assert sum(row.active for row in rows if row.op == op) == 1


@pytest.mark.parametrize("op", backend.OPS)
def test_auto_takes_the_first_that_can_run(op):
    order = ("triton", "native", "reference") if DEVICE == "cuda" else ("native", "reference")
    available = {row.backend for row in backends() if row.op == op and row.available}
    assert backend.pick(op, DEVICE, torch.float32) == next(name for name in order if name in available)


@pytest.mark.parametrize("choice", ["auto", "reference", "triton", "native"])
def test_float64_runs_the_reference(choice):
    use("reference")
    if choice != "auto" and backend.why_not("bn_act_moments", choice, DEVICE, torch.float32):
        pytest.skip(f"{choice} cannot run here")
    use(choice, op="bn_act_moments")
    assert backend.pick("bn_act_moments", DEVICE, torch.float64) == "reference"


def test_use_binds_one_op_or_all():
    use("reference")
    assert {backend.pick(op, DEVICE, torch.float32) for op in backend.OPS} == {"reference"}
    active = [row.backend for row in use("auto", op="kd_kl") if row.active and row.op != "kd_kl"]
    assert set(active) == {"reference"}


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="choice 'cuda': choose auto, reference, triton or native"):
        use("cuda")
    with pytest.raises(ValueError, match="op 'batch_norm': choose one of bn_act_moments, bn_act_train, bn_stat_loss"):
        use("auto", op="batch_norm")


@pytest.mark.skipif(DEVICE == "cuda", reason="here Triton can run")
def test_an_explicit_choice_that_cannot_run_raises(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="choice 'triton': bn_act_moments cannot run it: Triton does not run on cpu"):
        use("triton", op="bn_act_moments")
    assert backend.pick("bn_act_moments", "cpu", torch.float32) != "triton"


def test_reasons_without_triton_and_without_the_extension(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend, "native_ops", lambda: None)
    reasons = {row.backend: row.reason for row in backends() if row.op == "bn_act_moments"}
    assert reasons["reference"] == ""
    assert reasons["triton"] == "triton is not installed (pip install triton)"
    assert reasons["native"].startswith("the C++ extension is not built")
    use("auto")
    assert backend.pick("bn_act_moments", "cpu", torch.float32) == "reference"
    with pytest.raises(ValueError, match="the C\\+\\+ extension is not built"):
        use("native", op="bn_act_moments")


def test_a_choice_that_does_not_fit_a_tensor_raises_when_called():
    """`use` accepts what can run somewhere; a tensor where it cannot is an error, never a silent fall-back."""
    if DEVICE != "cuda":
        pytest.skip("needs a second device")
    use("triton", op="bn_act_moments")
    x, vector = torch.randn(2, 3, 4, 4), torch.ones(3)
    with pytest.raises(ValueError, match="bn_act_moments cannot run it"):
        bn_act_moments(x, vector, vector, None, None, 1e-5)


def test_public_names_resolve_and_others_do_not():
    for name in dfkd_kernels.__all__:
        assert getattr(dfkd_kernels, name) is getattr(dfkd_kernels, name)
    assert dir(dfkd_kernels) == sorted(dfkd_kernels.__all__)
    with pytest.raises(AttributeError, match="no attribute 'bn_loss'"):
        _ = dfkd_kernels.bn_loss


def test_importing_does_no_work():
    code = "import sys, dfkd_kernels; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("triton", "numpy", "refused"), [("3.6.0", "2.4.6", True), ("3.6.0", "2.3.5", False), ("3.7.1", "2.4.6", False)]
)
def test_an_interpreter_that_its_numpy_breaks_is_refused(monkeypatch, triton, numpy, refused):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("importlib.metadata.version", {"triton": triton, "numpy": numpy}.__getitem__)
    reason = backend.why_not("kd_kl", "triton", "cpu", torch.float32)
    assert bool(reason) is refused
    assert not refused or reason.endswith("fails with numpy 2.4.6 (pip install 'numpy<2.4', or Triton 3.7)")
