"""Silence libraries whose warnings quote the files they read."""

import warnings


def ignore_warnings_of(library: str) -> None:
    """Ignore the warnings of all modules of `library`, permanently.

    A permanent filter is thread-safe; a filter that is set and removed is not.
    """
    pattern = rf"{library}\."
    if not any(entry[0] == "ignore" and getattr(entry[3], "pattern", None) == pattern for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=pattern)
