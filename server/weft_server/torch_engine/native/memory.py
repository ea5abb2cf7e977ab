"""Memory for what every step reads from end to end: in order of use, in huge pages where the system has them.

A processor fetches a stream ahead only to the end of a page, and looks up every page that it comes to.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_LINE = 64
_HUGE_PAGE = 2 << 20


class Arena:
    """A block of memory of fixed size, handed out from front to back. Lives as long as any tensor in it."""

    def __init__(self, size_bytes: int) -> None:
        # Only whole huge pages are asked for, so that no memory is taken beyond `size_bytes`; they begin at a multiple
        # of their size, which a mapping need not do.
        pages = mmap.mmap(-1, size_bytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = torch.frombuffer(pages, dtype=torch.uint8)
        begin = -whole.data_ptr() % _HUGE_PAGE
        huge = size_bytes // _HUGE_PAGE * _HUGE_PAGE
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE, begin, huge)
        self._bytes = whole[begin : begin + size_bytes]
        self._used = 0

    def put(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of `tensor` in the arena."""
        return self.take(tensor.numel(), tensor.dtype).view(tensor.shape).copy_(tensor)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """(count,) in the arena, to be filled."""
        begin, size_bytes = self._used, count * dtype.itemsize
        self._used += aligned(size_bytes)
        return self._bytes[begin : begin + size_bytes].view(dtype)


def aligned(size_bytes: int) -> int:
    """What a tensor of `size_bytes` takes in an arena."""
    return -(-size_bytes // _LINE) * _LINE
