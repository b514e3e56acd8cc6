"""Windows of scored images as the monitor makes them."""

from cxr.monitoring.drift import FAILED, SIGNALS, Window
from tests.support.images.reference_images import CLASSES


def window(number: int, *, alarm: bool) -> Window:
    """Return the window of day `number`; the images of an alarm are darker."""
    return Window(
        number=number, first=f"2026-01-{number:02d}", last=f"2026-01-{number:02d}T12", score=2.0 if alarm else 0.5,
        distances=dict.fromkeys((*SIGNALS, FAILED), 0.3), median_shifts=dict.fromkeys(SIGNALS[:-1], -1.0),
        exceeded=("brightness",) if alarm else (), shares=dict.fromkeys(CLASSES, 1 / 3), examples=("a<b>.png",),
    )  # fmt: skip
