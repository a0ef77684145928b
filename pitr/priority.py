"""A thread's priority for CPU and disk, below that of the database.  Linux; elsewhere it says that it cannot.

Each thread of Linux has its own (sched(7), ioprio_set(2)), so WAL goes on at full priority in the same
process.  ioprio_set has no function in libc, and a disk's scheduler may ignore it: BFQ heeds classes and
levels, mq-deadline classes, "none" neither.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

IoClass: TypeAlias = Literal["best-effort", "idle"]

_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_WHO_PROCESS: Final = 1
_CLASS_SHIFT: Final = 13
# Best effort has eight levels, of which the last is the lowest; idle has none.
_VALUES: Final[dict[IoClass, int]] = {"best-effort": 2 << _CLASS_SHIFT | 7, "idle": 3 << _CLASS_SHIFT}


@dataclass(frozen=True, slots=True)
class Priority:
    """``nice`` from 0 to 19; ``io_class`` of ioprio_set(2)."""

    nice: int = 0
    io_class: IoClass | None = None


def lower_priority(priority: Priority) -> list[str]:
    """Give the calling thread ``priority``; return what could not be done, in words."""
    if not sys.platform.startswith("linux"):
        return ["threads have no priority of their own on this system"]
    notes = []
    thread = threading.get_native_id()
    try:
        if os.getpriority(os.PRIO_PROCESS, thread) < priority.nice:
            os.setpriority(os.PRIO_PROCESS, thread, priority.nice)
    except OSError as cause:
        notes.append(f"the copying threads keep their CPU priority: {cause.strerror}")
    if priority.io_class is not None and (refused := _set_io_class(thread, priority.io_class)):
        notes.append(f"the copying threads keep their I/O priority: {refused}")
    return notes


def _set_io_class(thread: int, io_class: IoClass) -> str | None:
    """Return why it was refused, None if it is set."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return f"ioprio_set is not known on {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _WHO_PROCESS, thread, _VALUES[io_class]) == 0:
        return None
    return os.strerror(ctypes.get_errno())
