"""For processes that move gigabytes in chunks of a megabyte: memory that is freed is kept for the next chunk.

The C library of Linux gives blocks of this size back to the kernel as soon as they are freed, and the kernel clears
each page of the next one: reading a gigabyte over gRPC took twice as long for it.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 64 << 20
_LARGEST_BYTES = 8 << 20
"""Above a chunk, a message, a manifest; below what nobody frees soon."""
_ARENAS = 2
"""Each keeps for itself what was freed in it. By default there are eight for every core, and a server that sends to
twelve clients at once held three times as much memory as its chunks take."""


def keep_freed_chunks() -> None:
    """Has the allocator of this process keep up to 64 MiB in each of two arenas.

    Where the C library has no such settings, nothing changes.

    For programs, at their start; a library leaves its process as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_ARENA_MAX, _ARENAS)
