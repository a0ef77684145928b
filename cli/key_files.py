"""Files that hold secrets: made once, for their owner only, and read with their mode checked."""

from __future__ import annotations

import glob
import os
import stat
import tempfile
from pathlib import Path

from cli.errors import UsageRefused
from pitr.errors import KeyMissing
from pitr.pipeline.keys import IdentityFile
from pitr.pipeline.sign import Signer
from storage.synced_file import sync_directory

SECRET_BYTES_MAX = 64 * 1024
_STAGED = ".part-"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_secret(path: Path, text: str) -> None:
    """Write a new file of mode 0600, whole and durable on return.  Never over another: raises UsageRefused.

    The name appears with the whole content only: half a key under it could neither be used nor replaced.
    """
    descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}{_STAGED}")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename, for it fails where the name is taken.
        os.link(staged, path)
    except FileExistsError as error:
        raise UsageRefused(
            f"{path} exists already",
            detail="a key is never written over",
            hint="move it away, or name another file",
        ) from error
    finally:
        remove_staged(path)
    sync_directory(path.parent)


def remove_staged(path: Path) -> None:
    """Remove what a killed ``write_secret`` left beside ``path``: a key with no name, or a second copy."""
    for left in path.parent.glob(f"{glob.escape(path.name)}{_STAGED}*"):
        left.unlink(missing_ok=True)


def is_private(path: Path) -> bool:
    """Tell whether nobody but the owner may read or change the file."""
    return not path.stat().st_mode & _OTHERS


def read_signing_key(path: Path) -> Signer:
    """Read the host's own key.  Raises KeyMissing, also if other users may read the file."""
    return Signer.parse(read_secret(path, "signing key"))


def read_identity(path: Path) -> IdentityFile:
    """Read a reader's identity file.  Raises KeyMissing."""
    return IdentityFile.parse(read_secret(path, "identity"))


def read_secret(path: Path, what: str) -> str:
    """Return the text of a file that is its owner's alone.  Raises KeyMissing, which shows nothing of it."""
    try:
        # To open a pipe is to wait for whoever writes into it, for ever perhaps.
        if path.exists() and not path.is_file():
            raise KeyMissing(
                f"the {what} file {path} is not a file", hint="name a file; a pipe or a device is none"
            )
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
