"""Probes of this host: its keys' files, its programs, its disk.  Reads only."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from pitr.errors import PitrError
from pitr.postgres.installation import Installation, installations
from verifiers.base import Finding, Severity

# A region that is down for long leaves sealed WAL here, and the slot keeps the rest.
SPOOL_FREE_WARN_BYTES = 1 << 30
SPOOL_FREE_FAIL_BYTES = 64 << 20
_IDENTITY_MARK = b"PITR-IDENTITY-1-"
_LOOKED_AT_MAX = 500
_FILE_BYTES_MAX = 64 * 1024


def probe_signing_key(path: Path) -> Finding:
    """Tell whether the host's key is there, and for its owner only."""
    check = "keys.signing"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        hint = "pitr init makes it; without it this host cannot write"
        return Finding(check, Severity.FAIL, str(path), error.strerror or "cannot be read", hint)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding(
            check, Severity.FAIL, str(path), f"mode {mode:04o}: others can read it", f"chmod 600 {path}"
        )
    return Finding(check, Severity.OK, str(path), "there, and for its owner only")


def probe_credentials(region: str, path: Path) -> Finding:
    """Warn if a region's credentials can be read by others on this host."""
    check = "region.credentials"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding(
            check, Severity.FAIL, f"{region}: {path}", error.strerror or "cannot be read", "check its path"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        hint = f"chmod 600 {path}"
        return Finding(
            check, Severity.WARN, f"{region}: {path}", f"mode {mode:04o}: others can read it", hint
        )
    return Finding(check, Severity.OK, f"{region}: {path}", "there, and for its owner only")


def probe_identity_absent(directories: Sequence[Path]) -> Finding:
    """Warn if a reader's identity lies where pitr keeps its files: who takes this host could read all."""
    check = "keys.identity_absent"
    looked_at = 0
    for directory in directories:
        try:
            paths = sorted(directory.iterdir())
        except OSError:
            continue
        for path in paths:
            if looked_at >= _LOOKED_AT_MAX:
                break
            looked_at += 1
            if _holds_identity(path):
                hint = "move it to a safe place off this host; only a restore needs it"
                return Finding(check, Severity.WARN, str(path), "a reader's identity lies on this host", hint)
    return Finding(check, Severity.OK, "this host", "no reader's identity beside pitr's files")


def _holds_identity(path: Path) -> bool:
    try:
        information = path.stat()
        if not stat.S_ISREG(information.st_mode) or information.st_size > _FILE_BYTES_MAX:
            return False
        return _IDENTITY_MARK in path.read_bytes()
    except OSError:
        return False


def probe_installation(major: int, preferred: Path | None) -> Finding:
    """Tell whether this host has the programs of the server's major version, which a restore here needs."""
    check = "host.postgres"
    try:
        found = installations(preferred=preferred)
    except PitrError as error:
        return Finding(check, Severity.FAIL, "PostgreSQL", str(error), error.hint)
    matching = [one for one in found if one.major == major]
    if matching:
        return Finding(check, Severity.OK, f"PostgreSQL {major}", _place(matching[0]))
    others = ", ".join(_place(one) for one in found) or "none"
    hint = f"install PostgreSQL {major} where a restore shall run, or set [postgres] bin_dir"
    return Finding(check, Severity.WARN, f"PostgreSQL {major}", f"no programs of it; found: {others}", hint)


def _place(installation: Installation) -> str:
    return f"{installation.version} at {installation.bin_dir}"


def probe_state_directory(path: Path) -> Finding:
    """Tell whether the daemon can write its state, and has room for it."""
    check = "host.state_dir"
    existing = next((place for place in (path, *path.parents) if place.exists()), path)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            check,
            Severity.FAIL,
            str(path),
            "cannot be written",
            f"chown it to the user who runs pitr: {path}",
        )
    space = os.statvfs(existing)
    free_bytes = space.f_bavail * space.f_frsize
    text = f"{free_bytes >> 20} MiB free"
    if free_bytes >= SPOOL_FREE_WARN_BYTES:
        return Finding(check, Severity.OK, str(path), text)
    severity = Severity.FAIL if free_bytes < SPOOL_FREE_FAIL_BYTES else Severity.WARN
    return Finding(check, severity, str(path), text, "make room: WAL is spooled here before it is sent")
