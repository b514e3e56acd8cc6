"""Decoding of image files, and the errors of files that cannot be decoded."""

import io
import struct
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import pytest
from PIL import Image

from cxr.common.cli import run_command
from cxr.common.errors import ImageError, MemoryLimitError
from cxr.imaging.decode import decode_grey, image_from_bytes, open_image
from cxr.imaging.preprocess import Preprocessing, prepare
from tests.support.faults import fault
from tests.support.images.dicom_images import BASELINE, EXPLICIT, dicom_image
from tests.support.memory import leave_memory
from tests.support.moments import in_child

PLAIN = Preprocessing(64, "stretch", "none", 2.0, 8, 1_000_000)


def gradient(height: int = 300, width: int = 400) -> np.ndarray:
    """A smooth image: every grey level, no edges that a resize could soften."""
    return np.add.outer(np.linspace(0, 100, height), np.linspace(0, 155, width)).astype(np.uint8)


def encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def test_png_is_decoded_exactly() -> None:
    image = gradient()
    assert np.array_equal(decode_grey(encoded(image), name="a.png", max_pixels=10**6), image)


def test_colour_becomes_luma_and_transparency_is_dropped() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 1] = 200  # green; OpenCV's order is BGRA
    rgba[..., 3] = 7
    data = encoded(rgba)
    assert open_image(data, name="a.png", max_pixels=10**6).header.mode == "RGBA"
    assert decode_grey(data, name="a.png", max_pixels=10**6) == pytest.approx(0.587 * 200, abs=1)


def test_16_bit_image_is_stretched_to_its_own_range() -> None:
    image = np.linspace(1000, 5000, 64 * 64).reshape(64, 64).astype(np.uint16)
    data = encoded(image)
    grey = decode_grey(data, name="a.png", max_pixels=10**6)
    assert open_image(data, name="a.png", max_pixels=10**6).header.mode == "L16"
    assert (grey.min(), grey.max()) == (0, 255)
    assert np.all(np.diff(grey.ravel().astype(int)) >= 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_lowest_level_is_white_is_no_negative(dtype: type[np.uint8 | np.uint16]) -> None:
    levels = np.array([[0, 100, 200]], dtype)
    tags = {256: 3, 257: 1, 258: dtype().itemsize * 8, 259: 1, 262: 0, 273: 122, 277: 1, 278: 1, 279: levels.nbytes}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + levels.tobytes()
    image = open_image(data, name="image.tif", max_pixels=100)
    assert image.grey()[0, 0] == 255
    assert np.all(np.diff(image.grey().astype(int)) < 0)
    assert np.all(np.diff(image.wide().levels.astype(int)) == -100)


def test_exif_rotation_is_applied() -> None:
    image = Image.fromarray(gradient(40, 80))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert decode_grey(buffer.getvalue(), name="a.jpeg", max_pixels=10**6).shape == (80, 40)


def test_jpeg_decoded_at_reduced_scale_is_similar() -> None:
    data = encoded(gradient(1200, 1600), ".jpg")
    reduced = decode_grey(data, name="a.jpg", max_pixels=10**7, min_side_px=224)
    whole = decode_grey(data, name="a.jpg", max_pixels=10**7)
    assert reduced.shape == (300, 400)
    difference = prepare(reduced, PLAIN).astype(int) - prepare(whole, PLAIN)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("contrast", ["clahe", "equalize"])
def test_contrast_widens_a_flat_image(contrast: str) -> None:
    flat = (100 + gradient() // 10).astype(np.uint8)
    raised = prepare(flat, Preprocessing(64, "stretch", contrast, 2.0, 8, 10**6))  # type: ignore[arg-type]
    assert np.ptp(raised) > np.ptp(prepare(flat, PLAIN))


def test_letterbox_keeps_the_aspect_and_pads_with_black() -> None:
    image = np.full((100, 200), 180, np.uint8)
    boxed = prepare(image, Preprocessing(64, "letterbox", "none", 2.0, 8, 10**6))
    assert boxed.shape == (64, 64)
    assert np.all(boxed[:16] == 0)
    assert np.all(boxed[-16:] == 0)
    assert np.all(boxed[16:48] == 180)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_border_is_cut_off_at_every_side_before_resizing(fit: Literal["stretch", "letterbox"]) -> None:
    image = np.full((200, 400), 255, np.uint8)
    image[20:180, 40:360] = 90
    uncut = prepare(image, replace(PLAIN, fit=fit))
    cut = prepare(image, replace(PLAIN, fit=fit, border_crop=0.1))
    assert 255 in uncut
    assert set(np.unique(cut)) == ({90} if fit == "stretch" else {0, 90})


@pytest.mark.parametrize("border_crop", [0.05, 0.25])
def test_the_border_crop_counts_when_a_jpeg_is_decoded_at_reduced_scale(
    border_crop: float,
) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8), ".jpg")
    wanted = replace(PLAIN, image_size_px=256, border_crop=border_crop)
    whole = decode_grey(data, name="image.jpg", max_pixels=10**6)
    assert np.array_equal(image_from_bytes(data, wanted, name="image.jpg"), prepare(whole, wanted))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (encoded(gradient(), ".jpg")[:-400], "truncated"),
        (encoded(gradient(), ".png")[:-20], "truncated"),
        (encoded(np.zeros((2000, 1000), np.uint8)), "larger than the pixel limit"),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "too large"],
)
def test_a_bad_file_is_named_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=r"image\.jpg") as caught:
        image_from_bytes(data, PLAIN, name="image.jpg")
    assert caught.value.reason == reason


def test_png_with_damaged_pixels_is_rejected() -> None:
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)))
    data[60:200] = bytes(140)
    with pytest.raises(ImageError, match=r"image\.png"):
        image_from_bytes(bytes(data), PLAIN, name="image.png")


def test_jpeg_truncated_after_its_thumbnail_is_truncated() -> None:
    whole = encoded(gradient(), ".jpg")
    thumbnail = encoded(gradient(30, 40), ".jpg")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    cut = whole[:2] + segment + whole[2:-300]
    with pytest.raises(ImageError, match="truncated"):
        open_image(cut, name="image.jpg", max_pixels=10**6)


LARGE = (6000, 6000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "16-bit PNG", "DICOM with JPEG", "DICOM"])
@fault("ingest, preprocess, forensics", "a limit of address space (`ulimit -v`) leaves too little for an image",
       "no image is called damaged; the run ends", "exit code 13, out of memory, what to lower")  # fmt: skip
def test_too_little_memory_is_no_damage(kind: str) -> None:
    data = large(kind)

    def main() -> None:
        decode_grey(data, name="large", max_pixels=50_000_000)

    assert in_child(lambda: run_command(main), lambda: None) == 0
    assert in_child(lambda: run_command(main), lambda: leave_memory(4 << 20)) == MemoryLimitError.exit_code


def large(kind: str) -> bytes:
    pixels = np.zeros(LARGE, np.uint8)
    match kind:
        case "JPEG":
            return encoded(pixels, ".jpg")
        case "PNG":
            return encoded(pixels)
        case "16-bit PNG":
            return encoded(pixels.astype(np.uint16))
        case _:
            return dicom_image(pixels, syntax=BASELINE if kind == "DICOM with JPEG" else EXPLICIT)
