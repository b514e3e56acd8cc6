"""Prefect flows: what runs, in which order, how often, and whom it notifies."""
