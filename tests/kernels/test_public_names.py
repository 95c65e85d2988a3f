"""Public names are the operators, in whatever order they are first asked for."""

from __future__ import annotations

import subprocess
import sys


def test_no_sub_package_hides_an_operator() -> None:
    """Importing a module binds its package's name in dfkd_kernels: `kd_kl_priority` must not leave `kd_kl` a module."""
    code = (
        "import dfkd_kernels; dfkd_kernels.kd_kl_priority; "
        "assert callable(dfkd_kernels.kd_kl), dfkd_kernels.kd_kl; dfkd_kernels.kd_kl.__name__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
