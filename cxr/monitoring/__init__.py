"""Drift of scored images from the reference of a model version."""
