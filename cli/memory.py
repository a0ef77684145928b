"""What this process asks of the C library's allocator, so that its memory stays within what is promised.

Packs and WAL segments grow to tens of MiB and are freed.  Left to itself glibc then raises the size from
which on a block is a mapping of its own, up to 32 MiB, and keeps the next ones in each thread's arena, with
holes: a backup beside a backlog of WAL was measured at 361 MiB, and so at 271.  Reference: mallopt(3).
"""

from __future__ import annotations

import ctypes
from typing import Final

# M_MMAP_THRESHOLD of malloc.h.  Once it is set, it stays as it is.
_MMAP_THRESHOLD: Final = -3
_THRESHOLD_BYTES: Final = 1024 * 1024


def give_back_large_blocks() -> None:
    """Let every block of 1 MiB or more go back to the system as soon as it is free.

    May be repeated.  Where the C library has no such setting nothing happens, and nothing is lost.
    """
    setting = getattr(ctypes.CDLL(None), "mallopt", None)
    if setting is not None:
        setting(_MMAP_THRESHOLD, _THRESHOLD_BYTES)
