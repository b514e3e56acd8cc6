"""PACS integration: classifies the images that arrive in an Orthanc and stores the results in their studies.

orthanc  client of Orthanc's REST API
worker   follows the feed of changes; one report an image
"""
