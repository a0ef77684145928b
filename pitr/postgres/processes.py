"""Processes: which server runs on a data directory, and which processes it started.  Reads ``/proc`` only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_ENDED_STATES = frozenset("ZX")  # zombie, dead: proc(5)


@dataclass(frozen=True, slots=True)
class _Stat:
    parent_pid: int
    state: str


def postmaster_pid(data_dir: Path) -> int | None:
    """Return the process id of the server that runs on ``data_dir``; None if there is none.

    A stale postmaster.pid may name a process that has nothing to do with PostgreSQL.  A postmaster works
    in its data directory (PostgreSQL src/backend/utils/init/miscinit.c ChangeToDataDir), so that decides;
    what we may not look at counts as running, because a running directory must never be written to.
    """
    try:
        pid = int((data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    # A single-user server writes its id negated.
    pid = abs(pid)
    if not is_alive(pid):
        return None
    try:
        return pid if (_PROC / str(pid) / "cwd").samefile(data_dir) else None
    except PermissionError:
        return pid
    except OSError:  # it has just ended
        return None


def is_alive(pid: int) -> bool:
    """Tell whether the process exists and has not ended; one that waits to be reaped has ended."""
    stat = _stat(pid)
    return stat is not None and stat.state not in _ENDED_STATES


def descendants(pid: int) -> list[int]:
    """Return the process ids of all children, their children, and so on, as of now."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            stat = _stat(int(entry.name))
            if stat is not None:
                children.setdefault(stat.parent_pid, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        born = children.pop(waiting.pop(), [])
        found += born
        waiting += born
    return found


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name before the last parenthesis may itself hold parentheses and spaces: proc(5).
    state, parent = text[text.rindex(")") + 1 :].split()[:2]
    return _Stat(parent_pid=int(parent), state=state)
