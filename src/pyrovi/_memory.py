"""How the process handles memory that has been freed."""

from __future__ import annotations

import ctypes
import functools
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt

KEPT = 2**27
"""Bytes of freed memory at the end of the heap that the process keeps."""

LARGEST = 2**25
"""Blocks of more bytes go back to the system when they are freed. No glibc takes more."""


@functools.cache
def keep_freed() -> None:
    """Let glibc keep some freed memory for the next minibatch, once per process.

    It returns blocks of megabytes to the system at once, and gets them back page by page: with
    minibatches of 1,000 observations this takes longer than to compute what is written there. Where
    the environment sets the options of the allocator they are left alone; other C libraries are,
    too.
    """
    decided = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if decided or os.name != "posix":
        return
    library = ctypes.CDLL(None)
    is_glibc = hasattr(library, "gnu_get_libc_version")
    if is_glibc and library.mallopt(_MMAP_THRESHOLD, LARGEST):
        # alone this would stop glibc from adapting the other
        library.mallopt(_TRIM_THRESHOLD, KEPT)
