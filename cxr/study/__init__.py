"""Experiments over many runs: what they train and the page of their results."""
