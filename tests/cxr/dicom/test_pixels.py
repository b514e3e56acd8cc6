"""DICOM images: grey levels of each kind, and the errors of files that are rejected."""

import io
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

from cxr.common.errors import ImageError
from cxr.dicom.pixels import open_dicom
from cxr.imaging.decode import decode_grey, is_image_file, open_image
from tests.support.faults import fault
from tests.support.images.dicom_images import BASELINE, BIG_ENDIAN, EXPLICIT, LOSSLESS, SECRETS, dicom_image, picture
from tests.support.project import PROJECT


def decoded(data: bytes, name: str = "image.dcm", max_pixels: int = 10**6) -> NDArray[np.uint8]:
    return decode_grey(data, name=name, max_pixels=max_pixels)


def png(samples: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", samples)[1].tobytes()


@pytest.mark.parametrize(("bits", "syntax"), [(bits, name) for bits in (8, 12, 16) for name in LOSSLESS])
def test_a_dicom_image_has_the_levels_of_a_png_with_the_same_samples(bits: int, syntax: str) -> None:
    samples = picture(bits=bits)
    of_png = decoded(png(samples.astype(np.uint8 if bits == 8 else np.uint16)), "image.png")
    assert np.array_equal(decoded(dicom_image(samples, bits=bits, syntax=LOSSLESS[syntax])), of_png)


@pytest.mark.parametrize("bits", [8, 12])
def test_a_lossy_image_is_close_to_the_original(bits: int) -> None:
    samples = picture(bits=bits)
    syntax = BASELINE if bits == 8 else "1.2.840.10008.1.2.4.51"
    difference = decoded(dicom_image(samples, bits=bits, syntax=syntax)).astype(int) - decoded(
        dicom_image(samples, bits=bits)
    )
    assert np.abs(difference).max() <= 8


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 900}])
def test_the_levels_for_a_viewer_give_the_grey_levels_within_their_window(
    photometric: str, window: dict[str, int]
) -> None:
    tags = {"PhotometricInterpretation": photometric, "RescaleSlope": 2, "RescaleIntercept": -100, **window}
    data = dicom_image(picture(bits=12), bits=12, **tags, ImageLaterality="R")
    image = open_dicom(data, name="image.dcm", max_pixels=10**6)
    wide, (low, high) = image.wide(), image.wide().window
    assert wide.levels.dtype == np.uint16
    shown = 255 * (wide.levels.astype(float) - low) / (high - low)
    assert np.abs(shown.clip(0, 255) - image.grey()).max() <= 1.5
    assert np.abs(wide.zero + wide.step * wide.levels - (2.0 * picture(bits=12) - 100)).max() <= abs(wide.step)
    assert (image.header.view, image.header.laterality) == ("PA", "R")


WINDOWS_OF_A_FILE = {"WindowCenter": [40, 0, -600], "WindowWidth": [400, 0, 1500], "RescaleType": "HU"}


@pytest.mark.parametrize(
    ("tags", "presets", "unit"),
    [
        ({}, [], ""),
        (WINDOWS_OF_A_FILE, [("", 40, 400), ("", -600, 1500)], "HU"),  # one without a width is left out
        (
            WINDOWS_OF_A_FILE | {"WindowCenterWidthExplanation": ["SOFT", "NONE", "LUNG"], "RescaleType": "US"},
            [("SOFT", 40, 400), ("LUNG", -600, 1500)],
            "",  # unspecified
        ),
        ({"WindowCenter": [1] * 1000, "WindowWidth": [2] * 1000}, [("", 1, 2)] * 16, ""),
    ],
)
def test_a_viewer_is_offered_the_windows_of_the_file_in_its_unit(
    tags: dict[str, Any], presets: list[tuple[str, float, float]], unit: str
) -> None:
    image = open_image(dicom_image(picture(bits=12), bits=12, **tags), name="image.dcm", max_pixels=10**6).wide()
    assert (list(image.presets), image.unit) == (presets, unit)


def test_behind_a_voi_lut_there_is_neither_a_window_nor_a_unit_of_the_file() -> None:
    table = lut(np.arange(4096, dtype=np.uint16), 0, 12)
    data = dicom_image(picture(bits=12), bits=12, VOILUTSequence=table, **WINDOWS_OF_A_FILE)
    image = open_image(data, name="image.dcm", max_pixels=10**6).wide()
    assert (image.presets, image.unit) == ((), "")


def test_odd_numbers_of_bytes_and_files_without_preamble_are_read() -> None:
    samples = picture(5, 7)
    assert np.array_equal(decoded(dicom_image(samples)), samples)
    assert np.array_equal(decoded(dicom_image(samples, preamble=False)), samples)
    swapped = np.append(samples, 0).astype(np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
    big_endian = dicom_image(samples, syntax=BIG_ENDIAN, PixelData=("OW", swapped))
    assert np.array_equal(decoded(big_endian), samples)


WINDOW = {"WindowCenter": 100, "WindowWidth": 50}
WINDOWS = [
    # keyword arguments of the header; the level expected of a sample
    ({"WindowCenter": 128, "WindowWidth": 256}, lambda v: v),
    ({"WindowCenter": 128, "WindowWidth": 256, "PhotometricInterpretation": "MONOCHROME1"}, lambda v: 255 - v),
    ({"PhotometricInterpretation": "MONOCHROME1"}, lambda v: 255 - v),
    # Both mean the same; together they are still one inversion.
    ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, lambda v: 255 - v),
    ({"PresentationLUTShape": "INVERSE"}, lambda v: 255 - v),
    # The first of several windows counts.
    ({"WindowCenter": [100, 20], "WindowWidth": [51, 9]}, lambda v: ((v - 99.5) / 50 + 0.5) * 255),
    (WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}, lambda v: ((v - 100) / 50 + 0.5) * 255),
    (WINDOW | {"VOILUTFunction": "SIGMOID"}, lambda v: 255 / (1 + np.exp(-4 * (v - 100) / 50))),
    (WINDOW | {"WindowWidth": 1}, lambda v: (v > 99.5) * 255.0),
    # Rescaled first: 2 v - 100 through a window from 0 to 200.
    (
        {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 100.5, "WindowWidth": 201},
        lambda v: 2.55 * v - 127.5,
    ),
    # An invalid window is ignored.
    (WINDOW | {"WindowWidth": 0}, lambda v: v),
]


@pytest.mark.parametrize(("tags", "level"), WINDOWS, ids=[str(tags) for tags, _ in WINDOWS])
def test_samples_become_levels_as_in_the_standard(tags: dict[str, Any], level: Callable[[Any], Any]) -> None:
    samples = np.arange(256).reshape(16, 16)
    expected = np.clip(level(samples.astype(float)), 0, 255)
    assert np.abs(decoded(dicom_image(samples, **tags)) - expected).max() < 0.5 + 1e-9


def lut(values: NDArray[Any], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values) % 0x10000, first % 0x10000, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return Sequence([item])


def test_the_modality_lut_comes_before_the_voi_lut() -> None:
    samples = np.arange(256).reshape(16, 16)
    modality = lut(np.arange(256)[::-1] + 1000, 0, 16)
    voi = lut(np.linspace(0, 4095, 256), 1000, 12)
    image = dicom_image(samples, ModalityLUTSequence=modality, VOILUTSequence=voi, WindowCenter=1, WindowWidth=2)
    assert np.array_equal(decoded(image), 255 - samples)


def test_signed_samples_high_bits_and_overlays_in_unused_bits_are_decoded() -> None:
    values = np.arange(-128, 128).reshape(16, 16)
    signed = dicom_image(values & 0xFFF, bits=12, PixelRepresentation=1, WindowCenter=0, WindowWidth=256)
    assert np.array_equal(decoded(signed), values + 128)
    shifted = (values + 128) << 4 | 0b1010  # HighBit 11, 8 bits stored: what is below belongs to overlays
    image = dicom_image(shifted, bits=16, BitsStored=8, HighBit=11)
    assert np.array_equal(decoded(image), values + 128)


def test_padding_is_dark_and_excluded_from_stretching() -> None:
    samples = picture(bits=12) // 4 + 100
    padded = np.pad(samples, 3, constant_values=4000)
    padded[0] = 4095
    tags = {"PixelPaddingValue": ("US", 4095), "PixelPaddingRangeLimit": ("US", 4000)}
    image = dicom_image(padded, bits=12, **tags)
    inside = decoded(image)[3:-3, 3:-3]
    assert np.array_equal(inside, decoded(png(samples), "image.png"))
    assert decoded(image)[:3].max() == 0
    inverted = dicom_image(padded, bits=12, PhotometricInterpretation="MONOCHROME1", **tags)
    assert decoded(inverted)[:3].max() == 0


@pytest.mark.parametrize(
    ("axes", "turned"),
    [
        (["L", "F"], lambda image: image),
        (["R", "F"], np.fliplr),
        (["L", "H"], np.flipud),
        (["R", "H"], lambda image: np.rot90(image, 2)),
        (["F", "L"], lambda image: image.T),
        (["H", "R"], lambda image: np.rot90(image.T, 2)),
        (["LF", "FR"], lambda image: image),  # slightly tilted
        (None, lambda image: image),
        (["?", "F"], lambda image: image),
    ],
)
def test_an_image_is_turned_to_display_orientation(axes: list[str] | None, turned: Callable[[Any], Any]) -> None:
    samples = picture()
    image = dicom_image(samples, PatientOrientation=axes)
    assert np.array_equal(decoded(image), turned(samples))
    header = open_image(image, name="image.dcm", max_pixels=10**6).header
    assert (header.height, header.width) == decoded(image).shape
    assert (header.format, header.mode) == ("DICOM", "L")


@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (40, 28)),
        ({"PixelSpacing": [0.1, 0.2]}, (20, 56)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (20, 56)),
        ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.2]}, (40, 56)),
        ({"PixelAspectRatio": [2, 1]}, (40, 28)),
        ({"PixelAspectRatio": [2, 1], "PatientOrientation": ["F", "L"]}, (28, 40)),
        ({"PixelSpacing": [0, 0]}, (40, 56)),
    ],
)
def test_decoded_pixels_are_square(tags: dict[str, Any], shape: tuple[int, int]) -> None:
    image = dicom_image(picture(), **tags)
    header = open_image(image, name="image.dcm", max_pixels=10**6).header
    assert decoded(image).shape == (header.height, header.width) == shape


REJECTED = [
    ({"NumberOfFrames": 2}, "several frames", "image.dcm has 2 frames"),
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour", "colour"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour", "colour"),
    ({"Modality": "CT"}, "other modality", "its modality is computed tomography; expected CR, DX, RG"),
    ({"Modality": "Sorrowful"}, "other modality", "missing or unknown"),
    ({"Modality": None}, "other modality", "missing or unknown"),
    ({"BodyPartExamined": "KNEE"}, "other body part", "another body part"),
    ({"BodyPartExamined": "THORACIC SPINE"}, "other body part", "another body part"),
    ({"BodyPartExamined": "Knee of Jane Sorrowful"}, "other body part", "another body part"),
    ({"ViewPosition": "LL"}, "lateral view", "lateral or oblique"),
    ({"ViewPosition": "LATERAL"}, "lateral view", "lateral or oblique"),
    ({"PatientOrientation": ["A", "F"]}, "lateral view", "lateral or oblique"),
    ({"Modality": "SR", "PixelData": None}, "no pixels", "has no pixels"),
    ({"PixelData": None}, "no pixels", "has no pixels"),
    ({"PresentationIntentType": "FOR PROCESSING"}, "for processing", "raw detector values"),
    ({"Rows": 0}, "no pixels", "no rows"),
    ({"Rows": None}, "not an image", "has no Rows in its header"),
    ({"BitsAllocated": 12}, "unsupported encoding", "8 of 12 bits"),
    ({"BitsAllocated": 32}, "unsupported encoding", "8 of 32 bits"),
    ({"BitsStored": 1, "HighBit": 0}, "unsupported encoding", "1 of 8 bits"),
    ({"HighBit": 15}, "unsupported encoding", "up to bit 15"),
    ({"Rows": 60000, "Columns": 60000}, "larger than the pixel limit", "60000 x 60000 pixels, allowed 1000000"),
    ({"Rows": 400}, "truncated", "its end is missing"),
    ({"PixelSpacing": [100, 0.001]}, "not an image", "as high as wide"),
]  # fmt: skip


@pytest.mark.parametrize(("tags", "reason", "message"), REJECTED, ids=[str(tags) for tags, _, _ in REJECTED])
def test_a_file_that_is_not_a_frontal_chest_x_ray_is_rejected_with_the_reason(
    tags: dict[str, Any], reason: str, message: str
) -> None:
    with pytest.raises(ImageError) as caught:
        decoded(dicom_image(picture(), **tags))
    assert caught.value.reason == reason
    assert message in str(caught.value)
    assert str(caught.value).startswith("image.dcm ")
    assert not any(secret in str(caught.value) for secret in SECRETS)


@pytest.mark.parametrize("code", ["399067008", "R-10232"])
def test_a_lateral_view_is_recognised_by_its_code(code: str) -> None:
    view = Dataset()
    view.CodeValue, view.CodeMeaning = code, "a view"
    with pytest.raises(ImageError, match="lateral or oblique"):
        decoded(dicom_image(picture(), ViewPosition=None, ViewCodeSequence=Sequence([view])))


@pytest.mark.parametrize("part", ["", "CHEST", "Chest AP", "THORAX", "LUNG"])
def test_every_name_of_the_chest_is_accepted(part: str) -> None:
    assert decoded(dicom_image(picture(), BodyPartExamined=part)).shape == (40, 56)


@pytest.mark.parametrize("syntax", ["explicit", "deflated", "JPEG lossless", "JPEG-LS", "JPEG 2000", "RLE"])
@pytest.mark.parametrize("share", [0.6, 0.9, 0.98])
def test_a_truncated_image_is_rejected(syntax: str, share: float) -> None:
    image = dicom_image(picture(), syntax=LOSSLESS[syntax])
    with pytest.raises(ImageError) as caught:
        decoded(image[: int(len(image) * share)])
    assert caught.value.reason == "truncated"


def test_an_image_truncated_in_its_header_is_rejected() -> None:
    image = dicom_image(picture())
    reasons = set()
    for end in range(140, image.index(b"\xe0\x7f\x10\x00") + 12):
        with pytest.raises(ImageError) as caught:
            decoded(image[:end])
        reasons.add(caught.value.reason)
    # A file truncated between two elements looks complete; one truncated in the file meta looks damaged.
    assert reasons == {"truncated", "no pixels", "other modality", "not an image"}


@fault("decode", "a deflated DICOM file inflates without end", "it is stopped at the limit", "the reason")
def test_an_image_that_inflates_beyond_the_limit_is_rejected() -> None:
    image = dicom_image(picture(), syntax=LOSSLESS["deflated"], ImageComments=("UT", "0" * (300 << 20)))
    assert len(image) < 1 << 20
    with pytest.raises(ImageError) as caught:
        decoded(image)
    assert caught.value.reason == "larger than the pixel limit"


def test_a_jpeg_with_another_size_than_its_header_is_not_decoded() -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((4000, 4000), np.uint8))[1].tobytes()
    image = dicom_image(picture(), syntax=BASELINE, PixelData=("OB", pydicom.encaps.encapsulate([jpeg])))
    with pytest.raises(ImageError, match="another size"):
        decoded(image)


def test_a_file_that_is_both_png_and_dicom_is_rejected_but_a_tiff_preamble_is_accepted() -> None:
    image = dicom_image(picture())
    with pytest.raises(ImageError, match="two formats"):
        decoded(b"\x89PNG\r\n\x1a\n" + image[8:])
    assert np.array_equal(decoded(b"II*\0" + image[4:]), picture())


def test_an_unknown_transfer_syntax_is_rejected_before_decoding() -> None:
    image = dicom_image(
        picture(), PixelData=("OB", pydicom.encaps.encapsulate([b"x" * 8])), syntax="1.2.840.10008.1.2.4.201"
    )
    with pytest.raises(ImageError) as caught:
        decoded(image)
    assert caught.value.reason == "unsupported encoding"


@pytest.mark.parametrize(
    "file",
    ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm",
     "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "J2K_pixelrep_mismatch.dcm"],
)  # fmt: skip
def test_files_of_real_devices_have_the_same_levels_as_with_pydicom(file: str) -> None:
    original = pydicom.dcmread(str(get_testdata_file(file, download=False)))
    original.Modality, original.BodyPartExamined, original.PatientOrientation = "DX", "CHEST", ["L", "F"]
    for keyword in ("PixelPaddingValue", "PixelSpacing"):
        original.pop(keyword, None)
    measured = apply_modality_lut(original.pixel_array, original).astype(float)
    if "WindowWidth" in original:
        measured = apply_voi_lut(measured, original)
        lowest = -(2.0 ** (original.BitsStored - 1)) if original.PixelRepresentation else 0.0
        range_of_samples = np.array([lowest, lowest + 2.0**original.BitsStored - 1])
        low, high = range_of_samples * original.get("RescaleSlope", 1) + original.get("RescaleIntercept", 0)
    else:
        low, high = measured.min(), measured.max()
    shares = (measured - low) / (high - low)
    written = io.BytesIO()
    original.save_as(written)
    assert np.abs(decoded(written.getvalue()).astype(float) - 255 * shares).max() <= 1.01


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("CT_small.dcm", "other modality"),
        ("examples_rgb_color.dcm", "other modality"),
        ("reportsi.dcm", "no pixels"),
        ("DICOMDIR", "no pixels"),
        ("rtplan.dcm", "no pixels"),
        ("dicomdirtests/77654033/CR1/6154", "other body part"),
    ],
)
def test_files_of_real_devices_that_are_not_chest_x_rays_are_rejected(file: str, reason: str) -> None:
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    path = folder / ("dicomdirtests/DICOMDIR" if file == "DICOMDIR" else file)
    with pytest.raises(ImageError) as caught:
        decoded(path.read_bytes(), str(path))
    assert caught.value.reason == reason


def test_files_of_a_pacs_are_recognised_by_their_signature(tmp_path: Path) -> None:
    for name in ("IM000001", "1.2.840.5"):
        (tmp_path / name).write_bytes(dicom_image(picture()))
    for name in ("notes.txt", "a", "b.dcm"):
        (tmp_path / name).write_bytes(b"x")
    assert sorted(path.name for path in tmp_path.iterdir() if is_image_file(path)) == ["1.2.840.5", "IM000001", "b.dcm"]


def broken(image: bytes) -> list[bytes]:
    """Return files with damaged or unusual patient tags, about which pydicom warns."""
    name = "=".join(["Sorrowful^Jane"] * 5)
    return [
        dicom_image(picture(), PatientBirthDate=None, PatientName=name, PatientID="8675309 " * 20),
        image[:400],
        image[:150],
        image.replace(b"PN", b"ZZ"),
        image.replace(b"8675309", b"\xff\xfe5309"),
        image.replace(b"19311224", b"Sorrowfu"),
    ]


def test_no_tag_of_the_patient_reaches_a_log_a_warning_or_a_message(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    messages = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in broken(dicom_image(picture())):
            try:
                messages.append(repr(open_dicom(data, name="image.dcm", max_pixels=10**6).header))
                decoded(data)
            except ImageError as error:
                messages.append(f"{error!r} {error.__cause__!r}")
    out, err = capfd.readouterr()
    everything = "\n".join([*messages, caplog.text, out, err, *(str(warning.message) for warning in caught)])
    assert len(messages) == 6
    assert not [secret for secret in SECRETS if secret in everything]


def test_importing_the_decoder_does_not_import_pydicom() -> None:
    script = "import sys, cxr.imaging.decode; print('pydicom' in sys.modules, 'gdcm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@fault("decode", "a DICOM frame crashes its decoder", "the decoder's own process dies alone", "has damaged pixels")
def test_a_frame_that_crashes_the_decoder_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr.dicom.codec.TIME_LIMIT_S", 0.001)
    with pytest.raises(ImageError, match="time limit"):
        decoded(dicom_image(picture(), syntax=LOSSLESS["JPEG-LS"]))
    monkeypatch.undo()
    frame = bytearray(dicom_image(picture(), bits=16, syntax=LOSSLESS["JPEG lossless"]))
    frame[frame.index(b"\xff\xc3") + 4] = 75  # a precision that crashes GDCM
    with pytest.raises(ImageError, match="damaged pixels"):
        decoded(bytes(frame))


SEEDS = [
    dicom_image(picture(), syntax=syntax, WindowCenter=100, WindowWidth=80)
    for syntax in (EXPLICIT, BIG_ENDIAN, LOSSLESS["deflated"], BASELINE)
]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    kept=st.floats(0.05, 1),
)
def test_a_damaged_file_gives_an_array_or_an_image_error(
    seed: bytes, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(seed)
    for position, value in changes:
        data[min(132 + int(position * (len(data) - 132)), len(data) - 1)] = value
    result = ""
    try:
        image = decoded(bytes(data[: int(len(data) * kept)]))
        result = f"{image.dtype} {image.ndim}"
    except ImageError as error:
        result = str(error)
    assert result == "uint8 2" or result.startswith("image.dcm ")
    assert not any(secret in result for secret in SECRETS)
