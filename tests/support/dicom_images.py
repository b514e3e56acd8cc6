"""DICOM films made for tests: in every transfer syntax, with a patient whose tags must turn up nowhere."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import gdcm
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
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
SECRETS = ("Sorrowful", "Jane", "8675309", "19311224", "Elm Street", "078051120", "Frankenstein", "55512", "Elsewhere")


def picture(height: int = 40, width: int = 56, bits: int = 8) -> NDArray[np.uint16]:
    """A smooth film with some noise, over all levels of `bits` bits."""
    rows, columns = np.mgrid[:height, :width]
    smooth = (np.sin(columns / 9) + np.cos(rows / 7) + 2) / 4 * (2**bits - 1)
    noisy = smooth + np.random.default_rng(7).integers(-2, 3, smooth.shape)
    return noisy.clip(0, 2**bits - 1).astype(np.uint16)


def dicom_film(
    samples: NDArray[Any], *, bits: int = 8, syntax: str = EXPLICIT, preamble: bool = True, **tags: Any
) -> bytes:
    """Return a DX film of `samples`; `tags` come on top, and a tag that is None is left out."""
    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3.4.5"
    film.StudyInstanceUID, film.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    film.Modality, film.BodyPartExamined, film.ViewPosition = "DX", "CHEST", "PA"
    film.SamplesPerPixel, film.PhotometricInterpretation, film.PixelRepresentation = 1, "MONOCHROME2", 0
    film.Rows, film.Columns = samples.shape[:2]
    film.BitsAllocated, film.BitsStored, film.HighBit = (16 if bits > 8 else 8), bits, bits - 1
    for keyword, value in (PATIENT | tags).items():
        if value is None:
            film.pop(keyword, None)
        elif isinstance(value, tuple):
            film.add_new(keyword, *value)
        else:
            setattr(film, keyword, value)
    if "PixelData" not in tags:
        film.PixelData = _encoded(samples, film, syntax)
        film["PixelData"].VR = "OW" if film.BitsAllocated == 16 else "OB"
    film.file_meta = FileMetaDataset()
    film.file_meta.MediaStorageSOPClassUID, film.file_meta.MediaStorageSOPInstanceUID = (
        film.SOPClassUID,
        UID("1.2.3.4.5"),
    )
    film.file_meta.TransferSyntaxUID = UID(syntax)
    written = io.BytesIO()
    film.save_as(written, enforce_file_format=preamble)
    return written.getvalue()


def _encoded(samples: NDArray[Any], film: Dataset, syntax: str) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    native = samples.astype(f"{order}u2" if film.BitsAllocated == 16 else "u1").tobytes()
    if syntax in NATIVE.values():
        return native + b"\0" * (len(native) % 2)
    if syntax == BASELINE:
        return encapsulate([cv2.imencode(".jpg", samples.astype(np.uint8))[1].tobytes()])
    return _compressed(samples, film, syntax)


def _compressed(samples: NDArray[Any], film: Dataset, syntax: str) -> bytes:
    """Return the pixel data that GDCM writes; through files, which its Python objects survive."""
    plain = Dataset()
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SOPClassUID", "SOPInstanceUID"):
        setattr(plain, keyword, film[keyword].value)
    plain.SamplesPerPixel, plain.PhotometricInterpretation, plain.PixelRepresentation = 1, "MONOCHROME2", 0
    plain.PixelData = samples.astype("<u2" if film.BitsAllocated == 16 else "u1").tobytes()
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
