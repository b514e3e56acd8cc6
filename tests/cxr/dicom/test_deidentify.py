"""Patient digests, and DICOM images without their patient."""

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from cxr.common.errors import ImageError, SourceError
from cxr.dicom.deidentify import KEY_VARIABLE, deidentified, patient_digest, patient_key, read_identity
from cxr.imaging.decode import decode_grey
from tests.support.images.dicom_images import BIG_ENDIAN, LOSSLESS, SECRETS, dicom_image, picture


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


def test_a_file_that_is_not_a_chest_x_ray_cannot_be_deidentified() -> None:
    with pytest.raises(ImageError) as caught:
        deidentified(dicom_image(picture(), Modality="MR"), name="image.dcm", max_pixels=10**6)
    assert caught.value.reason == "other modality"
