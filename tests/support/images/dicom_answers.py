"""The DICOM objects of answers, as a PACS returns them: validators have no complaint, and highdicom reads them."""

import io
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import highdicom
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ParametricMapStorage, SecondaryCaptureImageStorage

from tests.support.services.orthanc import OrthancServer, program


def checked(command: str, dicom: bytes, folder: Path) -> str:
    """Return the output of a validator, which must have no complaint about an object."""
    (folder / "answer.dcm").write_bytes(dicom)
    done = subprocess.run([program(command), str(folder / "answer.dcm")], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.isidentifier()]  # dciodvfy names the class there
    assert (done.returncode, said) == (0, [])
    return done.stdout


def sound_answers(server: OrthancServer, folder: Path) -> Counter[tuple[str, str]]:
    """Return how often a server holds each object, by kind and UID of its image.

    Each is read back, validated and read by highdicom; all objects that it refers to must be there.
    """
    stored = [server.file(one) for kind in ("SR", "OT") for one in server.instances(Modality=kind)]
    read = [pydicom.dcmread(io.BytesIO(dicom)) for dicom in stored]
    uids = {str(one.SOPInstanceUID) for one in read}
    found: Counter[tuple[str, str]] = Counter()
    for dicom, one in zip(stored, read, strict=True):
        checked("dciodvfy", dicom, folder)
        kind, image_and_others = _KINDS[one.SOPClassUID]
        image, *others = image_and_others(dicom, one, folder)
        assert others
        assert set(others) <= uids
        found[kind, image] += 1
    return found


def _report(dicom: bytes, read: Dataset, folder: Path) -> list[str]:
    checked("dsrdump", dicom, folder)
    groups = highdicom.sr.srread(io.BytesIO(dicom)).content.get_image_measurement_groups()
    (image,) = {str(one.referenced_sop_instance_uid) for group in groups for one in group.source_images}
    shown = [one for one in read.ContentSequence if one.ValueType == "IMAGE"]
    return [image, *(str(one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for one in shown)]


def _overlay(dicom: bytes, read: Dataset, folder: Path) -> list[str]:
    del dicom, folder
    assert max(read.pixel_array.shape) >= 1024
    return [str(read.SourceImageSequence[0].ReferencedSOPInstanceUID), *_reports_of(read)]


def _heat(dicom: bytes, read: Dataset, folder: Path) -> list[str]:
    del folder
    levels = highdicom.imread(io.BytesIO(dicom)).pixel_array
    assert max(levels.shape) == 512
    assert 0 <= levels.min() <= levels.max() <= 1
    derived = read.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    return [str(derived.SourceImageSequence[0].ReferencedSOPInstanceUID), *_reports_of(read)]


def _reports_of(read: Dataset) -> list[str]:
    return [str(one.ReferencedSOPInstanceUID) for one in read.ReferencedInstanceSequence]


_Referred = Callable[[bytes, Dataset, Path], list[str]]
# By SOP class: the kind, and a function that returns the UIDs of its image and of what it refers to.
_KINDS: dict[str, tuple[str, _Referred]] = {
    Comprehensive3DSRStorage: ("report", _report),
    SecondaryCaptureImageStorage: ("overlay", _overlay),
    ParametricMapStorage: ("heat", _heat),
}
KINDS = tuple(kind for kind, _ in _KINDS.values())
