"""From the bytes of a DICOM file to grey levels, and de-identification."""
