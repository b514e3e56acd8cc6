"""Where the model looked as a DICOM Parametric Map in the study of the image: numbers, for programs.

The Secondary Capture (cxr/inference/dicom_objects/overlay.py) is for people. A map holds the same heat, float32 from 0
to 1, with the code that DICOM has for it: Gradient-weighted class activation (CID 217, Visual Explanation).

PS3.3 A.75 requires a frame of reference, which a radiograph does not have. A map gets one of its own, so no other image
can be taken to lie in it: its origin is the centre of the image's first pixel, and its plane that of the image, rows
and columns in the directions of Patient Orientation (0020,0020). A map is smaller than its image; spacing and position
say where its pixels lie. Of an image without a pixel spacing the map has none either, and covers all of it.

The modality is OT, which the image reader (cxr/dicom/pixels.py) rejects: an answer is never classified.
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from highdicom.content import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.enum import CoordinateSystemNames
from highdicom.pm import DerivedPixelContrastValues, ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from cxr.common.notices import NOT_CLINICAL
from cxr.dicom.tags import image_errors
from cxr.inference.answer import Answer
from cxr.inference.dicom_objects.report import meaning
from cxr.inference.dicom_objects.shared import (
    MODEL,
    Author,
    cautions,
    coded,
    derived_uid,
    instance_number,
    object_uid,
    read_image,
    report_reference,
    series_number,
    series_uid,
    written,
)

_DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
_UPRIGHT = ("L", "F")  # as every frontal image is shown, and as the Secondary Capture says


def parametric_map(
    source: bytes, levels: NDArray[np.float32], answer: Answer, *, author: Author, name: str, made_at: datetime
) -> bytes:
    """Return the heat of the predicted class as a Parametric Map that refers to the image and its report.

    Args:
        source: bytes of the DICOM image; its pixels are not read.
        levels: (height, width), 0 to 1, in the aspect of the image; see `cxr.imaging.overlay.heat_levels`.
        answer: of the model.
        author: the model.
        name: of the image in errors.
        made_at: date and time of the map, in local time.

    Raises:
        ImageError: the header cannot be read, or lacks the UIDs that link a map to the image.
    """
    with image_errors(name):
        image = read_image(source, "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "PatientOrientation")
        return _map(image, levels, answer, author, made_at)


def _map(image: Dataset, levels: NDArray[np.float32], answer: Answer, author: Author, made_at: datetime) -> bytes:
    directions, known, spacing = _directions(image), _spacing(image), (1.0, 1.0)
    if known is not None:  # of the map's larger pixels
        spacing = (known[0] * image.Rows / levels.shape[0], known[1] * image.Columns / levels.shape[1])
    _place(image, directions, known or (1.0, 1.0), derived_uid(image.SOPInstanceUID, author, "heat frame"))
    made = ParametricMap(
        [image],
        np.ascontiguousarray(levels),
        series_instance_uid=series_uid(image.StudyInstanceUID, author, "heat"),
        series_number=series_number(author, "heat"),
        sop_instance_uid=object_uid(image.SOPInstanceUID, author, "heat"),
        instance_number=instance_number(image),
        manufacturer=MODEL,
        manufacturer_model_name=MODEL,
        software_versions=author.version,
        device_serial_number=author.weights_sha256,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping()],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        derived_pixel_contrast=DerivedPixelContrastValues.RESAMPLED,  # QUANTITY is newer than dicom3tools of 2022
        pixel_measures=PixelMeasuresSequence(spacing, slice_thickness=None),
        plane_orientation=PlaneOrientationSequence(CoordinateSystemNames.PATIENT, directions),
        plane_positions=[PlanePositionSequence(CoordinateSystemNames.PATIENT, _position(directions, known, spacing))],
        content_label="HEAT",
        content_description=f"Grad-CAM of {meaning(answer.predicted_class)}",
    )
    _complete(made, image, answer, author, has_spacing=known is not None)
    return written(made, author, made_at)


def _mapping() -> RealWorldValueMapping:
    return RealWorldValueMapping(
        lut_label="HEAT",
        lut_explanation="share of the class's evidence x its probability",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.GradientWeightedClassActivation,
    )


def _complete(made: Dataset, image: Dataset, answer: Answer, author: Author, *, has_spacing: bool) -> None:
    """Add what highdicom leaves out: notice, report, anatomy, and UIDs that are the same for the same answer."""
    made.SeriesDescription = f"AI heat map, values. {NOT_CLINICAL}"
    made.ImageComments = " ".join(cautions(answer, author))
    made.BodyPartExamined = "CHEST"  # not of a pair: no laterality
    made.ReferencedInstanceSequence = [report_reference(image, author)]
    organization = derived_uid(image.SOPInstanceUID, author, "heat dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    shared = made.SharedFunctionalGroupsSequence[0]
    anatomy = Dataset()
    anatomy.AnatomicRegionSequence, anatomy.FrameLaterality = [coded(codes.SCT.Lung)], "U"
    shared.FrameAnatomySequence = [anatomy]
    del shared.PixelMeasuresSequence[0].SpacingBetweenSlices  # there is one frame
    if not has_spacing:
        del shared.PixelMeasuresSequence[0].PixelSpacing


def _place(image: Dataset, directions: Sequence[float], spacing: tuple[float, float], frame: str) -> None:
    """Put the image's first pixel at the origin of a frame of reference: highdicom takes the map's from it."""
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = frame, None
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], list(directions)
    image.PixelSpacing, image.SliceThickness = list(spacing), None


def _directions(image: Dataset) -> tuple[float, ...]:
    """Return the direction cosines of rows and columns."""
    given = tuple(str(value) for value in image.get("PatientOrientation") or ())
    known = given if len(given) == 2 and all(value in _DIRECTIONS for value in given) else _UPRIGHT
    row, column = _DIRECTIONS[known[0]], _DIRECTIONS[known[1]]
    if np.dot(row, column):  # not at right angles: a damaged tag
        row, column = _DIRECTIONS[_UPRIGHT[0]], _DIRECTIONS[_UPRIGHT[1]]
    return tuple(float(value) for value in (*row, *column))


def _spacing(image: Dataset) -> tuple[float, float] | None:
    """Return the distance of rows and columns in mm, or None."""
    given = image.get("PixelSpacing") or image.get("ImagerPixelSpacing") or ()
    values = [float(value) for value in given]
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None


def _position(
    directions: Sequence[float], of_image: tuple[float, float] | None, of_map: tuple[float, float]
) -> tuple[float, ...]:
    """Return the centre of the map's first pixel; its corner is that of the image's first pixel."""
    if of_image is None:
        return (0.0, 0.0, 0.0)
    down, right = (of_map[0] - of_image[0]) / 2, (of_map[1] - of_image[1]) / 2
    place = right * np.asarray(directions[:3]) + down * np.asarray(directions[3:])
    return tuple(round(float(value), 6) for value in place)
