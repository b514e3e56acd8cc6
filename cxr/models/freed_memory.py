"""Memory that a process keeps when it frees it, so that computing on a CPU does not ask for it again and again."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's settings, malloc.h
_LARGEST_KEPT_BLOCK = 2**30
_MOST_KEPT = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed blocks of up to 1 GiB in this process, 2 GiB at most at the end of its heap.

    glibc gives each block above 32 MiB back to the system when it is freed, and the system clears every page before it
    hands the block out anew. With 16 images of 224 px the results of the first layers are such blocks, and a forward
    pass took 1.4 times as long. The peak of memory grows by a fiftieth to a fifth (docs/benchmarks.md, "Freed memory").
    Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK)
        mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
