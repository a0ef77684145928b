"""What a killed server leaves in the kernel: the small System V segment that guards its data directory.

The next start on that directory removes it; where there is none, for the directory is wiped, it stays until
the host is started anew, and a host has a limited number of them (``kernel.shmmni``).

Reference: PostgreSQL src/backend/port/sysv_shmem.c; src/include/utils/pidfile.h (line 7: key and id);
shmctl(2).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_LINE: Final = 6
_IPC_RMID: Final = 0
_IPC_STAT: Final = 2
# Larger than shmid_ds on any Linux; it begins with the key.
_STAT_BYTES: Final = 256


def remove_segment(data_dir: Path) -> bool:
    """Remove the segment that ``postmaster.pid`` names, if it is still that one; tell whether it was.

    For a server that was killed with all its children.  It goes when nobody is attached to it any more.
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text(errors="replace").splitlines()
        key, segment = map(int, lines[_LINE].split())
    except (OSError, IndexError, ValueError):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    status = (ctypes.c_char * _STAT_BYTES)()
    if libc.shmctl(segment, _IPC_STAT, status) != 0:
        return False
    # The number may be another's by now.
    if int.from_bytes(status.raw[:4], "little") != key & 0xFFFFFFFF:
        return False
    return bool(libc.shmctl(segment, _IPC_RMID, None) == 0)
