"""From a uint8 pool to a normalised batch in one launch; public name: `ops.gather_augment`."""
