"""Files that hold secrets: made once, for their owner only, and read with their mode checked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cli.errors import UsageRefused
from pitr.errors import KeyMissing
from pitr.pipeline.keys import IdentityFile
from pitr.pipeline.sign import Signer

SECRET_BYTES_MAX = 64 * 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_secret(path: Path, text: str) -> None:
    """Write a new file of mode 0600, durable on return.  Never over another: raises UsageRefused."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise UsageRefused(
            f"{path} exists already",
            detail="a key is never written over",
            hint="move it away, or name another file",
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def is_private(path: Path) -> bool:
    """Tell whether nobody but the owner may read or change the file."""
    return not path.stat().st_mode & _OTHERS


def read_signing_key(path: Path) -> Signer:
    """Read the host's own key.  Raises KeyMissing, also if other users may read the file."""
    return Signer.parse(_read_secret(path, "signing key"))


def read_identity(path: Path) -> IdentityFile:
    """Read a reader's identity file.  Raises KeyMissing."""
    return IdentityFile.parse(_read_secret(path, "identity"))


def _read_secret(path: Path, what: str) -> str:
    try:
        if not is_private(path):
            raise KeyMissing(
                f"the {what} file {path} can be read by others",
                detail=f"its mode is {stat.S_IMODE(path.stat().st_mode):04o}",
                hint=f"chmod 600 {path}",
            )
        with path.open("r", encoding="utf-8") as file:
            return file.read(SECRET_BYTES_MAX)
    except OSError as error:
        raise KeyMissing(
            f"the {what} file {path} cannot be read",
            detail=error.strerror,
            hint="check the path and its owner",
        ) from error
    except UnicodeDecodeError as error:
        raise KeyMissing(f"the {what} file {path} is not a key file", detail="it is not text") from error
