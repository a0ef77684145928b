"""A scratch directory that is ours from its making to its end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.errors import UsageRefused


@contextmanager
def scratch_place(path: Path) -> Iterator[Path]:
    """Make a directory that must not be there yet, and remove it with all that is in it."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise UsageRefused(
            f"{path} exists already", hint="name a directory that does not exist yet"
        ) from error
    except OSError as error:
        raise UsageRefused(f"{path} cannot be made", detail=error.strerror) from error
    try:
        yield path.absolute()
    finally:
        shutil.rmtree(path, ignore_errors=True)
