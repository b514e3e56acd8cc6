"""Patient digests, and DICOM images without their patient."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence

from cxr.common.errors import ImageError, SourceError
from cxr.dicom.deidentify import KEY_VARIABLE, deidentified, patient_digest, patient_key, read_identity
from cxr.imaging.decode import decode_grey
from tests.support.images.dicom_images import BASELINE, BIG_ENDIAN, LOSSLESS, SECRETS, dicom_image, picture


def test_identity_is_read_and_its_repr_is_empty() -> None:
    identity = read_identity(dicom_image(picture()), name="image.dcm")
    assert (identity.study_uid, identity.sop_uid, identity.patient_id) == ("1.2.3", "1.2.3.4.5", "MRN-8675309")
    assert repr(identity) == "Identity()"


def test_a_digest_depends_on_patient_issuer_and_key() -> None:
    digests = {
        patient_digest(patient, issuer=issuer, key=key)
        for patient in ("1", "2")
        for issuer in ("", "A")
        for key in (b"k" * 32, b"l" * 32)
    }
    assert len(digests) == 8
    assert patient_digest("1", issuer="", key=b"k" * 32) in digests
    assert all(len(digest) == 16 for digest in digests)


@pytest.mark.parametrize(("key", "problem"), [(None, "not set"), ("short", "too short")])
def test_a_missing_or_short_key_is_an_error(monkeypatch: pytest.MonkeyPatch, key: str | None, problem: str) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if key:
        monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(SourceError, match=f"{KEY_VARIABLE} is {problem}.*token_hex"):
        patient_key()


def lut(first: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, first % 0x10000, 12])
    item.add_new("LUTData", "OW", np.linspace(0, 4095, 256).astype("<u2").tobytes())
    item.LUTExplanation = "for Jane Sorrowful"
    return Sequence([item])


KINDS: list[dict[str, Any]] = [
    {},
    {"bits": 12, "syntax": BIG_ENDIAN},
    {"bits": 12, "syntax": LOSSLESS["implicit"], "WindowCenter": 100.1234, "WindowWidth": 222.25, "RescaleSlope": 0.1},
    {"syntax": LOSSLESS["deflated"], "VOILUTSequence": lut(0), "BodyPartExamined": "chest of Jane Sorrowful"},
    {"ModalityLUTSequence": lut(-10), "PhotometricInterpretation": "MONOCHROME1", "PatientOrientation": ["R", "F"]},
    {"bits": 16, "syntax": LOSSLESS["JPEG lossless"], "PixelSpacing": [0.143, 0.2]},
    {"bits": 12, "PixelRepresentation": 1, "PixelPaddingValue": ("SS", -2048), "RescaleIntercept": -7.5},
    {"bits": 12, "BitsAllocated": 16, "HighBit": 15},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_deidentified_image_has_the_same_levels_and_no_patient(kind: dict[str, Any]) -> None:
    image = dicom_image(picture(bits=kind.get("bits", 8)), **kind)
    bare = deidentified(image, name="image.dcm", max_pixels=10**6)
    before = decode_grey(image, name="image.dcm", max_pixels=10**6)
    assert np.array_equal(decode_grey(bare, name="bare.dcm", max_pixels=10**6), before)
    assert not [secret for secret in SECRETS if secret.encode() in bare]
    assert "1.2.3.4.5" not in str(pydicom.dcmread(io.BytesIO(bare)))
    assert deidentified(image, name="image.dcm", max_pixels=10**6) == bare


TEXT = b"Sorrowful^Jane 19311224"
SEGMENT = (len(TEXT) + 2).to_bytes(2, "big") + TEXT


def after_start(frame: bytes, marker: bytes) -> bytes:
    return frame[:2] + marker + SEGMENT + frame[2:]


def in_tile_part(frame: bytes) -> bytes:
    start = frame.index(b"\xff\x90\x00\x0a")
    length = int.from_bytes(frame[start + 6 : start + 10], "big") + len(SEGMENT) + 2
    header = frame[: start + 6] + length.to_bytes(4, "big") + frame[start + 10 : start + 12]
    return header + b"\xff\x64" + SEGMENT + frame[start + 12 :]


def after_size(frame: bytes) -> bytes:
    end = 4 + int.from_bytes(frame[4:6], "big")
    return frame[:end] + b"\xff\x64" + SEGMENT + frame[end:]


@pytest.mark.parametrize(
    ("syntax", "written", "stays"),
    [
        (BASELINE, lambda frame: after_start(frame, b"\xff\xfe"), True),
        (BASELINE, lambda frame: after_start(frame, b"\xff\xe1"), True),  # EXIF
        (BASELINE, lambda frame: frame + TEXT + b"\xff\xd9", True),
        (BASELINE, lambda frame: frame[:-2] + b"\xff\xfe" + SEGMENT + frame[-2:], True),  # behind the scan
        (LOSSLESS["JPEG lossless, first order"], lambda frame: after_start(frame, b"\xff\xfe"), True),
        (LOSSLESS["JPEG lossless, first order"], lambda frame: after_start(frame, b"\xff\xff\xfe"), False),  # fill byte
        (LOSSLESS["JPEG-LS"], lambda frame: after_start(frame, b"\xff\xfe"), True),
        (LOSSLESS["JPEG 2000"], after_size, True),
        (LOSSLESS["JPEG 2000"], lambda frame: frame + TEXT + b"\xff\xd9", True),
        (LOSSLESS["JPEG 2000"], in_tile_part, False),
        (LOSSLESS["RLE"], lambda frame: frame + TEXT + b"\0", False),
    ],
)
def test_text_beside_the_pixels_of_a_compressed_frame_is_not_kept(
    syntax: str, written: Callable[[bytes], bytes], stays: bool
) -> None:
    bits = 8 if syntax == BASELINE else 12
    plain = pydicom.dcmread(io.BytesIO(dicom_image(picture(bits=bits), bits=bits, syntax=syntax)))
    frame = written(get_frame(plain.PixelData, 0, number_of_frames=1).rstrip(b"\0"))
    plain.PixelData = encapsulate([frame])
    image = io.BytesIO()
    plain.save_as(image)
    bare = deidentified(image.getvalue(), name="image.dcm", max_pixels=10**6)
    before = decode_grey(image.getvalue(), name="image.dcm", max_pixels=10**6)
    assert np.array_equal(decode_grey(bare, name="bare.dcm", max_pixels=10**6), before)
    assert TEXT not in bare
    assert b"OpenJPEG" not in bare
    assert (pydicom.dcmread(io.BytesIO(bare)).file_meta.TransferSyntaxUID == syntax) is stays


def test_a_file_that_is_not_a_chest_x_ray_cannot_be_deidentified() -> None:
    with pytest.raises(ImageError) as caught:
        deidentified(dicom_image(picture(), Modality="MR"), name="image.dcm", max_pixels=10**6)
    assert caught.value.reason == "other modality"
