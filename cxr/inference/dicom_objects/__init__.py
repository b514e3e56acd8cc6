"""An answer as DICOM objects in the study of its image: report, overlay and heat map."""
