"""The Python interface: the few names that `dfkd_fast` itself has, docs/api.md. Nothing else in the package uses it."""
