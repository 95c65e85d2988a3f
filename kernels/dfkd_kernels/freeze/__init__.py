"""Freezing a network: eval, no weight gradients, BatchNorm layers that hand out their batch moments."""
