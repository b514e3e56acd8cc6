"""The exported network: run, compared with torch, and exported."""
