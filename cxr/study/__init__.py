"""Experiments over many runs: their configurations and the page of their results."""
