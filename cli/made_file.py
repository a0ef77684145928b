"""A file that a command was told to make: whole or not at all, and for its owner alone."""

from __future__ import annotations

from pathlib import Path

from cli.errors import UsageRefused
from storage.synced_file import replace_synced


def check_place(path: Path) -> None:
    """Refuse a name that no file can have, before hours of work are to go into it.  Raises UsageRefused."""
    if path.is_dir():
        raise UsageRefused(f"{path} is a directory", hint="name the file")
    if not path.parent.is_dir():
        raise UsageRefused(f"there is no directory {path.parent} to write {path.name} to")


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
