"""dfkd-fast: data-free knowledge distillation at the hardware's speed."""

__version__ = "0.1.0"
