"""The two sentences that stand beside every result: on pages and cards, in tables, answers and DICOM objects."""

NOT_CLINICAL = "Research software, not for clinical use."
SYNTHETIC = "Synthetic images: these results say nothing about patients."
"""For a model that was trained on synthetic images, and for what was measured on them."""


def notice(*, synthetic: bool) -> str:
    """Return what must stand beside a result: NOT_CLINICAL, and SYNTHETIC where it applies."""
    return f"{NOT_CLINICAL} {SYNTHETIC}" if synthetic else NOT_CLINICAL
