"""The link to a PACS."""
