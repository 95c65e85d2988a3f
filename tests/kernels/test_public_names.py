"""Public names are the operators, in whatever order they are first asked for."""

from __future__ import annotations

import subprocess
import sys


def test_no_sub_package_hides_an_operator() -> None:
    """Importing a module binds its package's name in dfkd_kernels, also where an operator has it, such as `kd_kl`."""
    code = (
        "import dfkd_kernels; dfkd_kernels.kd_kl_priority; dfkd_kernels.freeze_teacher; "
        "hidden = [name for name in dir(dfkd_kernels) if not callable(getattr(dfkd_kernels, name))]; "
        "assert not hidden, hidden"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
