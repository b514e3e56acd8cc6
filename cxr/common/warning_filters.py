"""Libraries that warn about the files they read, and quote them."""

import warnings


def ignore_warnings_of(library: str) -> None:
    """Ignore the warnings of all modules of `library`, for good.

    A filter that stays is safe among threads; one that is set and taken back is not.
    """
    pattern = rf"{library}\."
    if not any(entry[0] == "ignore" and getattr(entry[3], "pattern", None) == pattern for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=pattern)
