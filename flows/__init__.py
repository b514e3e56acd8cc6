"""Prefect flows: what runs, in which order, how often, who is told."""
