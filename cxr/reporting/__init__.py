"""Figures, report, cards and their templates."""
