"""Has the kernel begin to bring a large file to disk while it is being written.

By default the kernel begins when a tenth of the memory waits to be written, and whoever asks for a file to be synced
waits for nearly all of it: a third of the time that copying a gigabyte takes.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, BinaryIO

MIN_BYTES = 1 << 18
"""Of fewer bytes at once nobody notices the difference."""
_SYNC_FILE_RANGE_WRITE = 2


def begin_writeback(file: BinaryIO, size_bytes: int) -> None:
    """The last `size_bytes` bytes before the position of `file`, just written there, are on their way to disk.

    Waits for nothing and promises nothing: that, and what may have gone wrong, is the sync's that comes at the end.
    Does nothing where the C library has no `sync_file_range` (Linux has).
    """
    start_writing = _sync_file_range()
    if size_bytes >= MIN_BYTES and start_writing is not None:
        file.flush()
        start_writing(file.fileno(), file.tell() - size_bytes, size_bytes, _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Any:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function
