"""DICOM images for tests, in every transfer syntax, with a patient whose tags must not appear anywhere."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import gdcm
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, BASELINE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
NATIVE = {"implicit": IMPLICIT, "explicit": EXPLICIT, "big endian": BIG_ENDIAN, "deflated": DEFLATED}
LOSSLESS = NATIVE | {
    "JPEG lossless": "1.2.840.10008.1.2.4.57",
    "JPEG lossless, first order": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG-LS near lossless": "1.2.840.10008.1.2.4.81",  # with an error of 0
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "JPEG 2000, either kind": "1.2.840.10008.1.2.4.91",
    "RLE": "1.2.840.10008.1.2.5",
}
PATIENT = {
    "PatientName": "Sorrowful^Jane",
    "PatientID": "MRN-8675309",
    "PatientBirthDate": "19311224",
    "PatientAddress": "Elm Street 1428",
    "OtherPatientIDs": "SSN-078051120",
    "ReferringPhysicianName": "Frankenstein^Victor",
    "AccessionNumber": "ACC-55512",
    "InstitutionName": "Saint Elsewhere",
    "StudyDescription": "Cough of Jane Sorrowful",
}
COMPLETE = {"StudyDate": "20260228", "StudyTime": "101112", "StudyID": "7", "PatientSex": "F"}
"""Without these dciodvfy warns that a DICOMDIR would need them."""

SECRETS = ("Sorrowful", "Jane", "8675309", "19311224", "Elm Street", "078051120", "Frankenstein", "55512", "Elsewhere")


def picture(height: int = 40, width: int = 56, bits: int = 8) -> NDArray[np.uint16]:
    """Return a smooth image with some noise, over all levels of `bits` bits."""
    rows, columns = np.mgrid[:height, :width]
    smooth = (np.sin(columns / 9) + np.cos(rows / 7) + 2) / 4 * (2**bits - 1)
    noisy = smooth + np.random.default_rng(7).integers(-2, 3, smooth.shape)
    return noisy.clip(0, 2**bits - 1).astype(np.uint16)


def dicom_image(
    samples: NDArray[Any], *, bits: int = 8, syntax: str = EXPLICIT, preamble: bool = True, **tags: Any
) -> bytes:
    """Return a DX image of `samples`; `tags` are added; a tag that is None is omitted."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3.4.5"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    image.Modality, image.BodyPartExamined, image.ViewPosition = "DX", "CHEST", "PA"
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.Rows, image.Columns = samples.shape[:2]
    image.BitsAllocated, image.BitsStored, image.HighBit = (16 if bits > 8 else 8), bits, bits - 1
    for keyword, value in (PATIENT | tags).items():
        if value is None:
            image.pop(keyword, None)
        elif isinstance(value, tuple):
            with disable_value_validation():  # a value may be wrong on purpose
                image.add_new(keyword, *value)
        else:
            setattr(image, keyword, value)
    if "PixelData" not in tags:
        image.PixelData = _encoded(samples, image, syntax)
        image["PixelData"].VR = "OW" if image.BitsAllocated == 16 else "OB"
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = (
        image.SOPClassUID,
        UID("1.2.3.4.5"),
    )
    image.file_meta.TransferSyntaxUID = UID(syntax)
    written = io.BytesIO()
    image.save_as(written, enforce_file_format=preamble)
    return written.getvalue()


def _encoded(samples: NDArray[Any], image: Dataset, syntax: str) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    native = samples.astype(f"{order}u2" if image.BitsAllocated == 16 else "u1").tobytes()
    if syntax in NATIVE.values():
        return native + b"\0" * (len(native) % 2)
    if syntax == BASELINE:
        return encapsulate([cv2.imencode(".jpg", samples.astype(np.uint8))[1].tobytes()])
    return _compressed(samples, image, syntax)


def _compressed(samples: NDArray[Any], image: Dataset, syntax: str) -> bytes:
    """Return pixel data compressed by GDCM, through files, because its Python objects are unsafe in memory."""
    plain = Dataset()
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SOPClassUID", "SOPInstanceUID"):
        setattr(plain, keyword, image[keyword].value)
    plain.SamplesPerPixel, plain.PhotometricInterpretation, plain.PixelRepresentation = 1, "MONOCHROME2", 0
    plain.PixelData = samples.astype("<u2" if image.BitsAllocated == 16 else "u1").tobytes()
    plain["PixelData"].VR = "OW"
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    with TemporaryDirectory() as folder:
        before, after = str(Path(folder, "before")), str(Path(folder, "after"))
        plain.save_as(before, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(before)
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
        writer = gdcm.ImageWriter()
        read = reader.Read()
        change.SetInput(reader.GetImage())
        changed = change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(after)
        if not (read and changed and writer.Write()):
            raise RuntimeError(f"GDCM cannot write {syntax}")
        return bytes(dcmread(after).PixelData)
