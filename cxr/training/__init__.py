"""The training loop and what it needs; imports torch and nothing of the platform."""
