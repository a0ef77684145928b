"""An SQLite file for what one run must know and has no memory for; nothing of it outlives the run."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

_CACHE_KIB: Final = 16 * 1024


def open_notes(path: Path, schema: str) -> sqlite3.Connection:
    """Return a new database in ``path``, in place of what a killed run left there; any thread may use it.

    Without a journal: after any error it must be thrown away.  Raises sqlite3.Error, OSError.
    """
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        database.executescript(schema)
    except BaseException:
        database.close()
        raise
    return database
