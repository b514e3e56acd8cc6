"""The image with its heat map as a Secondary Capture in the study of the image.

The modality is OT, which the image reader (cxr/dicom/pixels.py) rejects: an answer is never classified.
"""

from datetime import datetime

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from cxr.common.notices import NOT_CLINICAL
from cxr.dicom.tags import image_errors
from cxr.inference.answer import Answer
from cxr.inference.dicom_objects.report import meaning
from cxr.inference.dicom_objects.shared import (
    MODEL,
    Author,
    cautions,
    coded,
    instance_number,
    object_uid,
    read_image,
    reference,
    report_reference,
    series_number,
    series_uid,
    written,
)


def secondary_capture(
    source: bytes, overlay: NDArray[np.uint8], answer: Answer, *, author: Author, name: str, made_at: datetime
) -> bytes:
    """Return the image with its heat map as a Secondary Capture that refers to the image and its report.

    Args:
        source: bytes of the DICOM image; its pixels are not read.
        overlay: (height, width, 3), red, green, blue.
        answer: of the model; the heat map is that of its predicted class.
        author: the model.
        name: of the image in errors.
        made_at: date and time of the picture, in local time.

    Raises:
        ImageError: the header cannot be read, or lacks the UIDs that link a picture to the image.
    """
    with image_errors(name):
        return _capture(read_image(source), overlay, answer, author, made_at)


def _capture(image: Dataset, overlay: NDArray[np.uint8], answer: Answer, author: Author, made_at: datetime) -> bytes:
    capture = SCImage.from_ref_dataset(
        image,
        pixel_array=np.ascontiguousarray(overlay),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=series_uid(image.StudyInstanceUID, author, "overlay"),
        series_number=series_number(author, "overlay"),
        sop_instance_uid=object_uid(image.SOPInstanceUID, author, "overlay"),
        instance_number=instance_number(image),
        manufacturer=MODEL,
        patient_orientation=("L", "F"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    capture.SeriesDescription = f"AI heat map. {NOT_CLINICAL}"
    shown = f"Grad-CAM for {meaning(answer.predicted_class)}, {MODEL} version {author.version}."
    capture.DerivationDescription = " ".join([*cautions(answer, author), shown])[:1024]
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BodyPartExamined = "CHEST"  # not of a pair: no laterality
    capture.BurnedInAnnotation, capture.RecognizableVisualFeatures = "YES", "NO"
    capture.SourceImageSequence = [_with_purpose(image, codes.DCM.SourceImageForImageProcessingOperation)]
    capture.ReferencedInstanceSequence = [report_reference(image, author)]
    return written(capture, author, made_at)


def _with_purpose(image: Dataset, purpose: Code) -> Dataset:
    item = reference(image.SOPClassUID, image.SOPInstanceUID)
    item.PurposeOfReferenceCodeSequence = [coded(purpose)]
    return item
