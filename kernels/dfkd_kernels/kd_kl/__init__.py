"""Temperature-scaled KL divergence per row with gradients to both logits: `ops.kd_kl` and `ops.kd_kl_priority`."""
