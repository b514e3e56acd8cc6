"""The data gates, by Great Expectations."""
