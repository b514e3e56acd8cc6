"""PACS integration: classifies the images that arrive in a PACS and stores the results in their studies.

transport  HTTP with limits of time
feed       what the worker needs of any PACS
orthanc    client of Orthanc's REST API
dicomweb   client of DICOMweb (QIDO-RS, WADO-RS, STOW-RS)
listener   DICOM node: images in and answers out by C-STORE
arriving   limits of memory and patience for what arrives by C-STORE
journal    the feed of the two that have none
worker     follows the feed of changes; one report an image
audit_log  who asked, which image, which version, when
"""
