"""Margin loss on the class activation map of the pseudo-label; public name: `ops.cam_margin_loss`."""
