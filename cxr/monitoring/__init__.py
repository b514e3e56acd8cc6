"""Drift of scored images against a version's reference."""
