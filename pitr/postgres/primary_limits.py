"""The limits of a primary that whoever replays its WAL must have at least.

A backup's settings name them as they were.  When they were raised since, WAL says so; replay notes the new
ones in the control file and then pauses, or ends where it lets nobody in yet: "insufficient parameter
settings".  Started again with what the control file says, it goes on.

Reference: PostgreSQL src/backend/access/transam/xlog.c (XLOG_PARAMETER_CHANGE, CheckRequiredParameterValues),
xlogrecovery.c (RecoveryRequiresIntParameter); manual, "Hot Standby", Administrator's Overview; 15 to 18.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.errors import ServerRefused
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import ServerUser, as_user

_CONTROLDATA_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Limit:
    """PostgreSQL's default, and what ``pg_controldata`` calls it."""

    default: int
    label: str


_LIMITS: Final = {
    "max_connections": _Limit(100, "max_connections"),
    "max_worker_processes": _Limit(8, "max_worker_processes"),
    "max_wal_senders": _Limit(10, "max_wal_senders"),
    "max_prepared_transactions": _Limit(0, "max_prepared_xacts"),
    "max_locks_per_transaction": _Limit(64, "max_locks_per_xact"),
}


def limits_of(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the limits that a primary with these settings needs of whoever replays its WAL."""
    return {name: str(max(limit.default, _integer(settings.get(name)))) for name, limit in _LIMITS.items()}


def raised_limits(
    installation: Installation, data_dir: Path, user: ServerUser | None, settings: Mapping[str, str]
) -> dict[str, str]:
    """Return what the control file asks for beyond ``settings``; empty if they are enough.

    Raises ServerRefused if ``pg_controldata`` cannot read it.
    """
    noted = _noted(installation, data_dir, user)
    return {name: str(noted[name]) for name in _LIMITS if noted.get(name, 0) > _integer(settings.get(name))}


def _noted(installation: Installation, data_dir: Path, user: ServerUser | None) -> dict[str, int]:
    prefix, options = as_user(user)
    command = [*prefix, str(installation.tool("pg_controldata")), "-D", str(data_dir)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            timeout=_CONTROLDATA_TIMEOUT_S,
            check=True,
            cwd="/",
            **options,
        )
    except (OSError, subprocess.SubprocessError) as cause:
        words = cause.stderr if isinstance(cause, subprocess.CalledProcessError) else str(cause)
        raise ServerRefused("the control file could not be read", detail=str(words).strip()) from cause
    found = dict(re.findall(r"(?m)^(\w+) setting: +(\d+)$", done.stdout))
    return {name: int(found[limit.label]) for name, limit in _LIMITS.items() if limit.label in found}


def _integer(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
