"""Whose image a DICOM file is, for the few that must know, and the image without that.

A patient's number is never kept. Where images of one patient must stay together, `patient_digest` stands in for it: an
HMAC under a key that only the hospital has. A plain or salted hash would not do: patient numbers are short, and with
the salt beside the hash all of them are tried in seconds. The key comes from the environment, so that it lies in no
output, no commit and no log; the same key gives the same digests, on any machine.

Letters that are burned into the picture stay in it: a header cannot tell where they are.
"""

import hashlib
import hmac
import io
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cxr.common.errors import SourceError
from cxr.dicom.greyscale import Table, Window
from cxr.dicom.header import NATIVE, header_of
from cxr.dicom.pixels import IMAGE_TAGS, grey_rules, samples_of
from cxr.dicom.tags import EXPLICIT, listed, read_dicom, refusing, text

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from cxr.dicom.greyscale import GreyRules
    from cxr.dicom.header import DicomHeader

KEY_VARIABLE = "CXR_PATIENT_KEY"
_KEY_CHARACTERS_AT_LEAST = 32
_DIGEST_CHARACTERS = 16
_ASPECT_UNIT = 500_000_000  # four times as much still is a DICOM integer
_CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
_IDENTITY_TAGS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
)


@dataclass(frozen=True)
class Identity:
    """What links an image to its study and patient. Its repr shows none of it, so that no log line can."""

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_class_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)


def read_identity(data: bytes, *, name: str) -> Identity:
    """Read what links an image to its study and patient; empty where the file does not say.

    Raises:
        ImageError: the file cannot be read.
    """
    with refusing(name):
        dataset = read_dicom(data, _IDENTITY_TAGS)
        return Identity(*(text(dataset, keyword) for keyword in _IDENTITY_TAGS))


def patient_key() -> bytes:
    """Return the key of the digests from the environment.

    Raises:
        SourceError: it is not set, or too short to withstand guessing.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    if len(key) < _KEY_CHARACTERS_AT_LEAST:
        raise SourceError(
            f"{KEY_VARIABLE} is {'too short' if key else 'not set'}: patients' numbers are replaced with digests under "
            f"it; set it to {_KEY_CHARACTERS_AT_LEAST} random characters or more, and keep it: "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return key.encode()


def patient_digest(patient: str, *, issuer: str, key: bytes) -> str:
    """Return what stands for a patient: 16 hexadecimal digits, the same for the same patient and key."""
    message = f"{issuer}\0{patient}".encode("utf-8", "surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:_DIGEST_CHARACTERS]


def without_patient(data: bytes, *, name: str, max_pixels: int) -> bytes:
    """Return the image as a DICOM file with nothing but its picture: it decodes to the same grey levels.

    It is built anew of what the reader understood, not stripped of what is known to be private: a tag nobody thought
    of cannot stay. The same image gives the same bytes.

    Args:
        data: the file's bytes.
        name: what errors call the file.
        max_pixels: refuse larger images.

    Raises:
        ImageError: it is no image that can be read; see cxr.dicom.pixels.read_dicom_header.
    """
    with refusing(name):
        source = read_dicom(data, IMAGE_TAGS)
        header = header_of(source, max_pixels)
        image = _picture(source, header)
        _describe_grey(image, grey_rules(source, header))
        return _file(image, EXPLICIT if header.transfer_syntax in NATIVE else header.transfer_syntax)


def _picture(source: "Dataset", header: "DicomHeader") -> "Dataset":
    from pydicom.dataset import Dataset

    image = Dataset()
    image.SOPClassUID, image.Modality, image.BodyPartExamined = _CR_STORAGE, header.modality, "CHEST"
    image.PatientOrientation = [str(axis).strip().upper()[:1] for axis in listed(source, "PatientOrientation")]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME1" if header.inverted else "MONOCHROME2"
    image.Rows, image.Columns = header.rows, header.columns
    image.PixelAspectRatio = [round(header.aspect * _ASPECT_UNIT), _ASPECT_UNIT]
    image.BitsAllocated, image.BitsStored = header.bits_allocated, header.bits_stored
    image.HighBit, image.PixelRepresentation = header.bits_stored - 1, int(header.signed)
    if header.transfer_syntax in NATIVE:
        image.PixelData = samples_of(source, header).astype("<u2" if header.bits_allocated == 16 else "u1").tobytes()
        image.PixelData += b"\0" * (len(image.PixelData) % 2)
    else:
        image.PixelData = source["PixelData"].value
    image["PixelData"].VR = "OW" if header.bits_allocated == 16 else "OB"
    return image


def _describe_grey(image: "Dataset", rules: "GreyRules") -> None:
    from pydicom.sequence import Sequence

    if isinstance(rules.modality, Table):
        image.ModalityLUTSequence = Sequence([_table(rules.modality)])
    else:
        image.RescaleSlope, image.RescaleIntercept = (_decimal(number) for number in rules.modality)
    if isinstance(rules.voi, Table):
        image.VOILUTSequence = Sequence([_table(rules.voi)])
    elif isinstance(rules.voi, Window):
        image.WindowCenter, image.WindowWidth = _decimal(rules.voi.centre), _decimal(rules.voi.width)
        image.VOILUTFunction = rules.voi.kind
    if rules.padding is not None:
        vr = "SS" if rules.signed else "US"
        image.add_new("PixelPaddingValue", vr, rules.padding[0])
        image.add_new("PixelPaddingRangeLimit", vr, rules.padding[1])


def _table(table: Table) -> "Dataset":
    from pydicom.dataset import Dataset

    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table.values) % 0x10000, table.first % 0x10000, table.bits])
    item.add_new("LUTData", "OW", table.values.astype("<u2").tobytes())
    return item


def _decimal(number: float) -> str:
    """Return a number in the 16 characters that DICOM allows, the same number where they suffice."""
    return next(text for digits in range(17, 0, -1) if len(text := f"{number:.{digits}g}") <= 16)


def _file(image: "Dataset", transfer_syntax: str) -> bytes:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    image.SOPInstanceUID = f"2.25.{int.from_bytes(hashlib.sha256(image.PixelData).digest()[:16], 'big')}"
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = UID(_CR_STORAGE)
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    written = io.BytesIO()
    image.save_as(written, enforce_file_format=True)
    return written.getvalue()
