"""The BN-statistics loss: fused eval BatchNorm with batch moments, and the distance of all layers' moments."""
