"""From the bytes of a DICOM file to pixels, and what identifies a patient."""
