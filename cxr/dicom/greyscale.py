"""From stored DICOM samples to grey levels: modality LUT, then VOI LUT, then polarity (PS3.3 C.7.6.3, C.11.1, C.11.2).

An image has at most 65,536 different samples, so the grey level of each is computed once, in double precision, and
looked up. Without a window or VOI LUT the levels are those of a PNG with the same samples: 8-bit samples are unchanged,
others are stretched from the darkest to the brightest sample, without padding. Percentiles are not used, because they
would clip bright parts such as lead letters and give other levels than a 16-bit PNG of the same image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_WIDE = 65535

WindowKind = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class Table:
    """A lookup table: `values[i]` (0 to 2**bits - 1) is the output for the input `first + i`; clamped at its ends."""

    first: int
    bits: int
    values: NDArray[np.uint16]

    def of(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the output for each input."""
        index = np.clip(np.rint(inputs) - self.first, 0, len(self.values) - 1).astype(np.int64)
        return np.asarray(self.values[index], np.float64)


@dataclass(frozen=True)
class Window:
    """Window centre and width, in the units after the modality LUT."""

    centre: float
    width: float
    kind: WindowKind

    def of(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the position of each value in the window, 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
        if self.kind == "SIGMOID":
            exponent = np.clip(-4.0 * (values - self.centre) / self.width, -700, 700)
            return np.asarray(1.0 / (1.0 + np.exp(exponent)))
        if self.kind == "LINEAR_EXACT":
            return np.clip((values - self.centre) / self.width + 0.5, 0.0, 1.0)
        if self.width == 1.0:
            return (values > self.centre - 0.5).astype(np.float64)
        return np.clip((values - (self.centre - 0.5)) / (self.width - 1.0) + 0.5, 0.0, 1.0)


@dataclass(frozen=True)
class Preset:
    """A window that a file offers, in the units after the modality LUT; `name` is its explanation, or empty."""

    name: str
    centre: float
    width: float


@dataclass(frozen=True, eq=False)
class WideLevels:
    """Levels of an image at full depth, for a viewer that applies the window itself.

    levels      (H, W) uint16
    window      lowest and highest level of the window to start with
    zero, step  a level means `zero + step * level`, in the units after the modality LUT; after a VOI LUT, in its
                output. `step` is negative where the file is inverted
    """

    levels: NDArray[np.uint16]
    window: tuple[float, float]
    zero: float
    step: float


@dataclass(frozen=True)
class GreyRules:
    """Rules from samples to grey levels.

    modality  a table, or (slope, intercept)
    voi       a table, a window, or None
    padding   lowest and highest sample value of padding, or None
    """

    bits_stored: int
    signed: bool
    modality: Table | tuple[float, float]
    voi: Table | Window | None
    padding: tuple[int, int] | None
    inverted: bool

    def apply(self, samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return the grey levels of `samples` (height, width), bit patterns of `bits_stored` bits; padding is 0."""
        values = self._values()
        padded = self._padded(values)
        shown = ~padded
        if self.voi is None:  # only stretching depends on the samples of the image
            used = np.zeros(len(values), np.bool_)
            used[samples.ravel()] = True
            shown &= used
        levels = np.rint(self._levels(self._measured(values), shown)).astype(np.uint8)
        if self.inverted:
            levels = 255 - levels
        levels[padded] = 0
        return np.asarray(np.take(levels, samples), np.uint8)

    def wide(self, samples: NDArray[np.uint16]) -> WideLevels:
        """Return 16-bit levels of `samples`, stretched from the darkest to the brightest of the image; padding is 0."""
        values = self._values()
        padded, measured = self._padded(values), self._measured(values)
        if isinstance(self.voi, Table):
            measured = self.voi.of(measured)
        used = np.zeros(len(values), np.bool_)
        used[samples.ravel()] = True
        seen = measured[used & ~padded] if (used & ~padded).any() else measured
        zero, step = float(seen.min()), ((float(seen.max()) - float(seen.min())) or 1.0) / _WIDE
        levels = np.clip(np.rint((measured - zero) / step), 0, _WIDE)
        start, end = 0.0, float(_WIDE)
        if isinstance(self.voi, Window):
            start, end = ((self.voi.centre + half - zero) / step for half in (-self.voi.width / 2, self.voi.width / 2))
        if self.inverted:
            levels, start, end = _WIDE - levels, _WIDE - end, _WIDE - start
            zero, step = zero + step * _WIDE, -step
        levels[padded] = 0
        return WideLevels(np.take(levels.astype(np.uint16), samples), (start, end), zero, step)

    def _values(self) -> NDArray[np.int64]:
        patterns = np.arange(1 << self.bits_stored)
        return (
            np.where(patterns >> (self.bits_stored - 1), patterns - len(patterns), patterns)
            if self.signed
            else patterns
        )

    def _padded(self, values: NDArray[np.int64]) -> NDArray[np.bool_]:
        if self.padding is None:
            return np.zeros(len(values), np.bool_)
        low, high = self.padding
        return (values >= low) & (values <= high)

    def _measured(self, values: NDArray[np.int64]) -> NDArray[np.float64]:
        if isinstance(self.modality, Table):
            return self.modality.of(values.astype(np.float64))
        slope, intercept = self.modality
        return np.asarray(values * slope + intercept, np.float64)

    def _levels(self, measured: NDArray[np.float64], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the level of each sample, 0 to 255, before rounding."""
        if isinstance(self.voi, Table):
            return self.voi.of(measured) * 255.0 / ((1 << self.voi.bits) - 1)
        if isinstance(self.voi, Window):
            return self.voi.of(measured) * 255.0
        if self._is_plain_8_bit():
            return measured
        seen = measured[shown] if shown.any() else measured
        low, high = float(seen.min()), float(seen.max())
        scale = 255.0 / ((high - low) or 1.0)
        stretched = (measured.astype(np.float32) - low) * scale  # in float32, like a 16-bit PNG
        return np.clip(stretched.astype(np.float64), 0.0, 255.0)

    def _is_plain_8_bit(self) -> bool:
        return self.bits_stored == 8 and not self.signed and self.modality == (1.0, 0.0)


def table(descriptor: Sequence[int], data: bytes | Sequence[int], *, signed: bool, little_endian: bool) -> Table:
    """Return the table of a LUT descriptor and LUT data (PS3.3 C.11.1.1).

    Raises:
        ValueError: the descriptor is invalid, or there are fewer values than it declares.
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count % 0x10000 or 0x10000
    first = (first % 0x10000 ^ 0x8000) - 0x8000 if signed else first % 0x10000
    if not 8 <= bits <= 16:
        raise ValueError("bits of a lookup table")
    if not isinstance(data, bytes):
        values = np.asarray(data, np.int64) % 0x10000
    elif bits == 8 and count <= len(data) < 2 * count:  # two per word, low byte first
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
        values = words.astype("<u2").view(np.uint8).astype(np.int64)
    else:
        values = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2").astype(np.int64)
    if len(values) < count or values[:count].max() >= 1 << bits:
        raise ValueError("values of a lookup table")
    return Table(first, bits, values[:count].astype(np.uint16))
