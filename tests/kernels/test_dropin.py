"""The package works as a folder copied into another project, under another name, beside the installed one."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dfkd_kernels

SOURCE = Path(dfkd_kernels.__file__).parent

BOTH = """
import dfkd_kernels, project.vendored.fast_ops
packages = dfkd_kernels, project.vendored.fast_ops
"""

ALONE = """
import sys
sys.modules["triton"] = None
import project.vendored.fast_ops
packages = [project.vendored.fast_ops]
"""

USE = """
import torch

results = []
for package in packages:
    x = torch.randn((2, 5, 4, 4), generator=torch.Generator().manual_seed(0)).requires_grad_()
    mean, var = torch.zeros(5), torch.ones(5)
    y, moments = package.bn_act_moments(x, mean, var, None, None, 1e-5)
    loss = package.bn_stat_loss([moments], [(mean, var)]) + y.sum()
    student, teacher = torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]]
    sampler = package.PrioritySampler(64, device="cpu")
    kl = package.kd_kl_priority(student, teacher, torch.arange(4), torch.ones(4), sampler)
    image = package.gather_augment(
        torch.full((2, 8, 8, 3), 7, dtype=torch.uint8), torch.tensor([1]), torch.zeros(1, 2, dtype=torch.int64),
        torch.tensor([True]), (0.5,) * 3, (0.5,) * 3, pad=1)
    cam = package.cam_margin_loss(x, torch.ones(3, 5), torch.tensor([0, 2]))
    (loss + cam).backward()
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(5, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    teacher = package.freeze_teacher(torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(5, 3)))
    logits, features, moments = teacher(x.detach())
    frozen = package.bn_stat_loss(moments, teacher.targets)
    results.append([loss.detach(), x.grad, kl, image, cam.detach(), logits, features, frozen])
    print([row.backend for row in package.backends() if row.active])

for values in zip(*results):
    assert all(torch.equal(values[0], value) for value in values)
from project.vendored.fast_ops import backend
assert backend.NAMESPACE == "project_vendored_fast_ops"
assert hasattr(torch.ops.project_vendored_fast_ops, "bn_act_moments_forward")
assert not [name for name in __import__("sys").modules if name.startswith("dfkd_fast")]
"""


def run(code: str, folder: Path, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(folder), **environment}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def vendor(folder: Path, *, extension: bool) -> None:
    ignored = shutil.ignore_patterns("__pycache__", *([] if extension else ["_C*"]))
    shutil.copytree(SOURCE, folder / "project/vendored/fast_ops", ignore=ignored)


def test_two_copies_in_one_process(tmp_path):
    vendor(tmp_path, extension=True)
    run(BOTH + USE, tmp_path)


def test_a_copy_without_the_extension_and_without_triton(tmp_path):
    """Only torch is there: everything runs, on the reference."""
    vendor(tmp_path, extension=False)
    printed = run(ALONE + USE, tmp_path, CUDA_VISIBLE_DEVICES="")
    assert set(printed.strip("[]\n").replace("'", "").split(", ")) == {"reference"}


def test_no_absolute_import_of_itself():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [str(node.module)]
            assert not [name for name in imported if name.startswith("dfkd")], path
