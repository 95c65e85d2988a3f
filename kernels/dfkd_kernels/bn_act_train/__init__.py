"""Train-mode BatchNorm, an optional residual and an activation, forward and backward, with running statistics."""
