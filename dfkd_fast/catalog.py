"""What there is, as literals: `dfkd-fast ls` and `--help` read this file only, so they answer without importing torch."""

from __future__ import annotations

METHODS: dict[str, str] = {
    "nayer": "dfkd_fast.methods.nayer:Nayer",
}
"""method name -> "module:Class"; the class's config is `<Class>Config` in the same module"""
