"""What this process asks of its allocators, so that memory costs little and stays within what is promised.

Packs and WAL segments grow to tens of MiB and are freed.  Left to itself glibc then raises the size from
which on a block is a mapping of its own, up to 32 MiB, and keeps the next ones in each thread's arena, with
holes: a backup beside a backlog of WAL was measured at 361 MiB, and so at 271.  Frames, of 1 MiB, must not be
mappings: their page faults cost a restore a fifth of its CPU.  Reference: mallopt(3).
"""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Final

# malloc.h.  Once one of them is set, neither is adjusted any more.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_MAPPED_FROM_BYTES: Final = 2 * 1024 * 1024
# What an arena keeps of freed memory for the next frames.
_KEPT_BYTES: Final = 8 * 1024 * 1024
# Left to itself glibc gives 40 threads 8 arenas for each core, each with holes of its own: what one thread
# frees the others do not get.  A daemon that caught up had 50 to 100 MiB in them.  The interpreter lets one
# thread at a time ask for memory anyway, so few of them wait for each other.
_ARENAS: Final = 2
# Most objects here live as long as the file or segment at hand; a collection every 700 finds nothing.
_OBJECTS_PER_COLLECTION: Final = 20_000


def settle_memory() -> None:
    """Let blocks of 2 MiB or more go back to the system when they are free, and collect cycles less often.

    To be called before numpy is imported; may be repeated.  Where the C library has no such setting nothing
    happens, and nothing is lost.
    """
    setting = getattr(ctypes.CDLL(None), "mallopt", None)
    if setting is not None:
        setting(_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        setting(_TRIM_THRESHOLD, _KEPT_BYTES)
        setting(_ARENA_MAX, _ARENAS)
    gc.set_threshold(_OBJECTS_PER_COLLECTION, 10, 10)
    # numpy starts a thread per core for sums that are never asked for.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
