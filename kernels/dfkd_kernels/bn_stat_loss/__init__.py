"""The distance of all layers' batch statistics from their targets, in a constant number of launches."""
