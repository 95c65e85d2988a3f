"""The native library runs on every x86-64 processor: vector code stands only where the processor is asked first."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

native = pytest.importorskip("dfkd_kernels._C", reason="the native extension is not built")

_ONLY_AVX512 = re.compile(r"zmm|[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]")


def instructions(disassembly: str) -> Iterator[tuple[str, str]]:
    """The function and the text of each instruction."""
    function = ""
    for line in disassembly.splitlines():
        if header := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            function = header[1]
        elif len(columns := line.split("\t")) > 1 and columns[1].strip():
            yield function, columns[1]


def misplaced(disassembly: str) -> dict[str, str]:
    """AVX and AVX-512 instructions outside the functions of csrc/cpu/each_isa.h's namespaces v3 and v4."""
    found: dict[str, str] = {}
    for function, text in instructions(disassembly):
        operator = text.split()[0]
        if operator.startswith("v") and operator not in ("verr", "verw"):
            homes = ("v4",) if _ONLY_AVX512.search(text) else ("v3", "v4")
            if not any(f"{home}::" in function or f"{home}_bf16::" in function for home in homes):
                found.setdefault(function, text)
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one instruction set here")
def test_vector_code_is_only_where_the_processor_is_asked() -> None:
    """A shared inline function compiled for AVX-512 ends a run on an older processor by SIGILL."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump (binutils) is not installed")
    command = [objdump, "-d", "-C", "--no-show-raw-insn", native.__file__]
    disassembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert any("v3::" in function for function, _ in instructions(disassembly)), "no vector code: has the name changed?"
    assert misplaced(disassembly) == {}


def test_the_check_sees_a_misplaced_instruction() -> None:
    text = "0000 <dfkd::cpu::Affine::from(long) const>:\n 7:\tvpbroadcastq %rdx,%xmm0\n d:\tret\n"
    assert misplaced(text) == {"dfkd::cpu::Affine::from(long) const": "vpbroadcastq %rdx,%xmm0"}
    assert misplaced(text.replace("Affine::from", "v3::from")) == {}
    assert misplaced(text.replace("Affine::from", "v3::from").replace("%xmm0", "%zmm0"))
