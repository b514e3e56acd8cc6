"""From raw sets to one manifest, splits and an image array; the synthetic sample."""
