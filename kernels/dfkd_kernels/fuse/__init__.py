"""Networks in training with fused operators, in place."""
