"""Draw where the model looked over the image itself: the one way for page, files, DICOM objects and report.

The heat of a class is Grad-CAM, whose largest value is 1, times the probability of the class: one scale for all images
and classes, so that a class which the model does not believe in does not glow. What is below the lower end of the scale
is transparent. The model's input is cropped, resized and contrast-enhanced; people see the original, so the heat is
mapped back to the geometry of the original.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cxr.imaging.preprocess import Preprocessing

MIN_SIDE_PX = 1024
"""Shorter images are enlarged, so that their longer side has this length."""

SCALE_START = 0.1
"""Heat below this is not drawn."""

MIN_PROBABILITY = 0.001
"""A class with a lower probability has no heat at all."""

_MAX_OPACITY = 0.65
_NOTICE = "AI, research only"
_LEGEND = f"heat = share of the class's evidence x its probability; below {SCALE_START:g}: transparent, not used"
_TEXT = 0.022  # height of the caption's text, as a share of the longer side
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_INK, _GROUND = (235, 240, 244), (0, 0, 0)


@dataclass(frozen=True)
class Caption:
    """What is burned into a picture: the class of the heat, its probability, the model, and a warning if there is one.

    model   its version, in words
    """

    of_class: str
    probability: float
    model: str
    synthetic: bool
    warning: str | None = None

    def lines(self) -> tuple[str, ...]:
        """Return the lines of text."""
        shown = "< 0.1%" if self.probability < MIN_PROBABILITY else f"{self.probability:.1%}"
        trained = ", trained on synthetic images" if self.synthetic else ""
        numbers = f"{self.of_class} {shown}   {self.model}{trained}"
        if self.warning:  # before any number
            return f"{_NOTICE}   NO ANSWER: {self.warning}", f"heat for {numbers}", _LEGEND
        return f"{_NOTICE}   {numbers}", _LEGEND


def draw_overlay(
    grey: NDArray[np.uint8], heat: NDArray[np.float32], preprocessing: Preprocessing, caption: Caption
) -> NDArray[np.uint8]:
    """Return an image with its heat, a scale and a caption below it.

    Args:
        grey: (H, W), the original image.
        heat: (h, w), 0 to 1, in the geometry of the model's input, as `Classifier.heat` returns it.
        preprocessing: how the image was prepared.
        caption: of the answer.

    Returns:
        (H', W', 3) RGB with the aspect of the image, plus the caption's strip; its longer side is at least MIN_SIDE_PX.
    """
    shown = enlarge(grey)
    layer = heat_layer(heat, caption.probability, (shown.shape[0], shown.shape[1]), preprocessing)
    return np.vstack([_blend(shown, layer), _strip(caption, shown.shape[1], max(shown.shape))])


def heat_layer(
    heat: NDArray[np.float32], probability: float, size: tuple[int, int], preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """Return the heat to lay over the original image, (height, width, 4) RGBA; transparent where nothing was used.

    Args:
        heat: (h, w), 0 to 1, in the geometry of the model's input.
        probability: of the class, 0 to 1.
        size: height and width of the layer, in the aspect of the original.
        preprocessing: how the image was prepared.
    """
    return colours(heat_levels(heat, probability, size, preprocessing))


def heat_levels(
    heat: NDArray[np.float32], probability: float, size: tuple[int, int], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Return the heat in the geometry of the original image, (height, width), 0 to 1; arguments of `heat_layer`."""
    shown = probability if probability >= MIN_PROBABILITY else 0.0
    return _to_original(heat * np.float32(shown), size[0], size[1], preprocessing)


def colours(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the colour and opacity of levels (H, W) of the scale, 0 to 1: (H, W, 4) RGBA."""
    above = np.clip((levels - SCALE_START) / (1 - SCALE_START), 0, 1)
    red_green_blue = cv2.cvtColor(
        cv2.applyColorMap(np.rint(levels.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
    )
    # A square root: the colours of the lower half are dark, and must be seen on a dark lung.
    return np.dstack([red_green_blue, np.rint(np.sqrt(above) * _MAX_OPACITY * 255).astype(np.uint8)])


def enlarge(grey: NDArray[np.uint8], side_px: int = MIN_SIDE_PX) -> NDArray[np.uint8]:
    """Return an image (H, W) with a longer side of at least `side_px`, enlarged smoothly where it is shorter."""
    scale = side_px / max(grey.shape)
    return grey if scale <= 1 else _sized(grey, scale, cv2.INTER_CUBIC)


def shrink(grey: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3) with a longer side of at most `side_px`."""
    scale = side_px / max(grey.shape[:2])
    return grey if scale >= 1 else _sized(grey, scale, cv2.INTER_AREA)


def _sized(grey: NDArray[np.uint8], scale: float, interpolation: int) -> NDArray[np.uint8]:
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=interpolation), np.uint8)


def _to_original(
    heat: NDArray[np.float32], height: int, width: int, preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Undo border crop and fit: (h, w) of the model's input to (height, width) of the original, 0 in the border."""
    top, left = int(height * preprocessing.border_crop), int(width * preprocessing.border_crop)
    inner_height, inner_width = height - 2 * top, width - 2 * left
    if preprocessing.fit == "letterbox":
        heat = _without_bars(heat, inner_height, inner_width)
    mapped = np.zeros((height, width), np.float32)
    inner = cv2.resize(heat, (inner_width, inner_height), interpolation=cv2.INTER_CUBIC)
    mapped[top : top + inner_height, left : left + inner_width] = inner.clip(0, 1)  # cubic overshoots
    return mapped


def _without_bars(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    side, longer = heat.shape[0], max(height, width)
    shown_height, shown_width = max(1, round(side * height / longer)), max(1, round(side * width / longer))
    top, left = (side - shown_height) // 2, (side - shown_width) // 2
    return heat[top : top + shown_height, left : left + shown_width]


def _strip(caption: Caption, width: int, longer: int) -> NDArray[np.uint8]:
    """Return caption and scale, (height, width, 3), for an image of this width and longer side."""
    size, margin = longer * _TEXT, round(longer * _TEXT / 2)
    font = ImageFont.load_default(size)
    lines = [part for line in caption.lines() for part in _wrapped(line, font, width - 2 * margin)]
    spacing = round(size * 1.3)
    strip = Image.new("RGB", (width, spacing * (len(lines) + 1) + 2 * margin), _GROUND)
    for number, line in enumerate(lines):
        ImageDraw.Draw(strip).text((margin, margin + number * spacing), line, _INK, font)
    _draw_scale(strip, font, top=margin + len(lines) * spacing, height=round(size), margin=margin)
    return np.asarray(strip, np.uint8)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _draw_scale(strip: Image.Image, font: Font, *, top: int, height: int, margin: int) -> None:
    """Draw the scale over mid grey, as the heat lies over the image, and its ends."""
    draw, room = ImageDraw.Draw(strip), margin + round(font.getlength("0")) + margin // 2
    bar = colours(np.linspace(0, 1, max(1, strip.width - 2 * room), dtype=np.float32)[None])
    drawn = _blend(np.full(bar.shape[:2], 128, np.uint8), bar)
    strip.paste(Image.fromarray(np.repeat(drawn, height, axis=0)), (room, top))
    draw.text((margin, top), "0", _INK, font)
    draw.text((strip.width - room + margin // 2, top), "1", _INK, font)


def _blend(grey: NDArray[np.uint8], layer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a layer (H, W, 4) RGBA over an image (H, W): (H, W, 3) RGB."""
    opacity = layer[..., 3:].astype(np.float32) / 255
    return np.rint((1 - opacity) * grey[..., None] + opacity * layer[..., :3]).astype(np.uint8)
