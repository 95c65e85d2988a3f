"""Eval BatchNorm, residual, activation and batch moments in one pass over x."""
