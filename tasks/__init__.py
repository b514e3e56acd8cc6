"""The verbs: one module a pipeline step, run as `python -m tasks.<step>`."""
