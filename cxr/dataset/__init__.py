"""From raw sets to one manifest, splits and one image array; the synthetic sample."""
