"""``tar | zstd -1`` and back: the simplest copy of the relations, on the same disk.

It checks, encrypts and indexes nothing, sends nothing, and is no backup of a running server.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Usage, run

PACKED = "tar | zstd -1, nothing sent"
UNPACKED = "zstd -d | tar, nothing fetched"


def missing() -> str | None:
    """Return what to do to have what it needs, or None."""
    absent = [name for name in ("tar", "zstd") if shutil.which(name) is None]
    return f"not installed: apt-get install {' '.join(absent)}" if absent else None


def pack(data_dir: Path, archive: Path) -> Usage:
    """Pack the relations of a cluster."""
    script = 'tar -C "$0" -cf - base | zstd -q -1 -f -o "$1" && sync "$1"'
    usage = run(["sh", "-c", script, data_dir, archive])
    return replace(usage, stored_bytes=archive.stat().st_size)


def unpack(archive: Path, into: Path) -> Usage:
    """Unpack them into a new folder."""
    into.mkdir()
    return run(["sh", "-c", 'zstd -q -d -c "$1" | tar -C "$0" -xf - && sync -f "$0"', into, archive])
