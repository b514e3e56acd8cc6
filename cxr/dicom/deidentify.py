"""Read study and patient of a DICOM file, and write the image without them.

A patient number is never stored. `patient_digest` replaces it where images of one patient must stay together: an HMAC
with a key that only the hospital has. A plain or salted hash is not enough: patient numbers are short, and with a known
salt all of them can be tried in seconds. The key comes from the environment, so that it is in no output, commit or log;
the same key gives the same digests on any machine.

A compressed image stays compressed, without the comments and EXIF of its frame (cxr/dicom/bare_frame.py); one whose
frame cannot be taken apart is written uncompressed.

Text that is burned into the pixels is not removed, because the header does not tell where it is.
"""

import hashlib
import hmac
import io
import os
from dataclasses import dataclass, field
from datetime import date

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import UID

from cxr.common.errors import SourceError
from cxr.dicom.bare_frame import bare_frame
from cxr.dicom.greyscale import GreyRules, Table, Window
from cxr.dicom.header import NATIVE, RLE, DicomHeader, parse_header
from cxr.dicom.pixels import IMAGE_TAGS, grey_rules, samples_of
from cxr.dicom.tags import EXPLICIT, image_errors, read_dicom, text, values_of

KEY_VARIABLE = "CXR_PATIENT_KEY"
_MIN_KEY_CHARACTERS = 32
_DIGEST_CHARACTERS = 16
_MOST_DAYS_SHIFTED = 1_000_000
_ASPECT_UNIT = 500_000_000  # four times this number is still a DICOM integer
_CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
_IDENTITY_TAGS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "StudyDate",
)


@dataclass(frozen=True)
class Identity:
    """Study and patient of an image. Its repr is empty, so that no log line shows them.

    study_date  as in the header: YYYYMMDD, in old files YYYY.MM.DD
    """

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_class_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    study_date: str = field(repr=False)


def read_identity(data: bytes, *, name: str) -> Identity:
    """Read study and patient of an image; missing tags are empty.

    Raises:
        ImageError: the file cannot be read.
    """
    with image_errors(name):
        dataset = read_dicom(data, _IDENTITY_TAGS)
        return Identity(*(text(dataset, keyword) for keyword in _IDENTITY_TAGS))


def read_manufacturer(data: bytes, *, name: str) -> str:
    """Return the vendor of the device that took an image, "" where the file does not say.

    Raises:
        ImageError: the file cannot be read.
    """
    with image_errors(name):
        return text(read_dicom(data, ("Manufacturer",)), "Manufacturer")


def patient_key() -> bytes:
    """Return the key of the patient digests from the environment.

    Raises:
        SourceError: it is not set or too short.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    if len(key) < _MIN_KEY_CHARACTERS:
        raise SourceError(
            f"{KEY_VARIABLE} is {'too short' if key else 'not set'}: it is the key of the digests that replace patient "
            f"numbers; set it to {_MIN_KEY_CHARACTERS} random characters or more, and keep it: "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return key.encode()


def patient_digest(patient: str, *, issuer: str, key: bytes) -> str:
    """Return the digest of a patient: 16 hexadecimal digits, the same for the same patient and key."""
    message = f"{issuer}\0{patient}".encode("utf-8", "surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:_DIGEST_CHARACTERS]


def shifted_day(day: date, *, key: bytes) -> int:
    """Return a day as a number that keeps order and distance of days, and hides the date from all without the key."""
    digest = hmac.new(key, b"day of acquisition", hashlib.sha256).digest()
    return day.toordinal() + int.from_bytes(digest[:8], "big") % _MOST_DAYS_SHIFTED


def deidentified(data: bytes, *, name: str, max_pixels: int) -> bytes:
    """Return a DICOM file with the image only, which decodes to the same grey levels.

    The file is built from the parsed image, and not by removing private tags, so that no unknown tag remains. The same
    image gives the same bytes.

    Args:
        data: the file's bytes.
        name: name of the file in messages.
        max_pixels: larger images are rejected.

    Raises:
        ImageError: it is not a readable chest X-ray; see cxr.dicom.pixels.open_dicom.
    """
    with image_errors(name):
        source = read_dicom(data, IMAGE_TAGS)
        header = parse_header(source, max_pixels)
        frame = _bare_frame(source, header)
        image = _image_dataset(source, header, frame)
        _describe_grey(image, grey_rules(source, header))
        return _file(image, EXPLICIT if frame is None else header.transfer_syntax)


def _bare_frame(source: Dataset, header: DicomHeader) -> bytes | None:
    """Return the compressed pixels without comments; None where the samples themselves are to be written."""
    if header.transfer_syntax in NATIVE | {RLE}:  # RLE has room for text in its header and behind its end
        return None
    return bare_frame(get_frame(source["PixelData"].value, 0, number_of_frames=1))


def _image_dataset(source: Dataset, header: DicomHeader, frame: bytes | None) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.Modality, image.BodyPartExamined = _CR_STORAGE, header.modality, "CHEST"
    image.PatientOrientation = [str(axis).strip().upper()[:1] for axis in values_of(source, "PatientOrientation")]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME1" if header.inverted else "MONOCHROME2"
    image.Rows, image.Columns = header.rows, header.columns
    image.PixelAspectRatio = [round(header.aspect * _ASPECT_UNIT), _ASPECT_UNIT]
    image.BitsAllocated, image.BitsStored = header.bits_allocated, header.bits_stored
    image.HighBit, image.PixelRepresentation = header.bits_stored - 1, int(header.signed)
    if frame is None:
        image.PixelData = samples_of(source, header).astype("<u2" if header.bits_allocated == 16 else "u1").tobytes()
        image.PixelData += b"\0" * (len(image.PixelData) % 2)
    else:
        image.PixelData = encapsulate([frame])
    image["PixelData"].VR = "OW" if header.bits_allocated == 16 else "OB"
    return image


def _describe_grey(image: Dataset, rules: GreyRules) -> None:
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


def _table(table: Table) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table.values) % 0x10000, table.first % 0x10000, table.bits])
    item.add_new("LUTData", "OW", table.values.astype("<u2").tobytes())
    return item


def _decimal(number: float) -> str:
    """Return a number in the 16 characters that DICOM allows, exactly if possible."""
    return next(text for digits in range(17, 0, -1) if len(text := f"{number:.{digits}g}") <= 16)


def _file(image: Dataset, transfer_syntax: str) -> bytes:
    image.SOPInstanceUID = f"2.25.{int.from_bytes(hashlib.sha256(image.PixelData).digest()[:16], 'big')}"
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = UID(_CR_STORAGE)
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    written = io.BytesIO()
    image.save_as(written, enforce_file_format=True)
    return written.getvalue()
