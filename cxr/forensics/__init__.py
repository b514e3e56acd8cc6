"""Data forensics: what the files of a set say about its labels and its style, before any model is trained on it."""
