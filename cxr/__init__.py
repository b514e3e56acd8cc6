"""Chest X-rays, from raw sets to answers; docs/architecture.md draws the rooms and who may import whom."""
