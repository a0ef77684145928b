"""A file that a command was told to make: whole or not at all, and for its owner alone."""

from __future__ import annotations

from pathlib import Path

from storage.synced_file import replace_synced


def write_made(path: Path, content: bytes) -> None:
    """Return when ``content`` is all of the file.  Raises OSError.

    A link, a pipe, ``/dev/stdout``: what is no file of its own is written into, for its name is not ours to
    replace.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with path.open("wb") as file:
            file.write(content)
    else:
        replace_synced(path, content)
