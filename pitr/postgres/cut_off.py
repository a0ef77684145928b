"""A server without a network: the words that start one in a namespace of its own, and the proof of it.

In a namespace that was just made there is no interface but a loopback that is down, so nothing that the
restored files hold (a trigger, an extension, a subscription) reaches anybody.  The Unix socket is a file and
works all the same.  Linux only; reference: unshare(1), network_namespaces(7).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from pitr.postgres.server_user import PROBE_TIMEOUT_S, ServerUser, UserOptions

_LOOPBACK: Final = "lo"


def as_cut_off_user(user: ServerUser | None) -> tuple[list[str], UserOptions]:
    """Return the words before a command, and ``subprocess``'s options, that run it as ``user``, cut off.

    The words end in an exec of the command, so the process that is started becomes it.
    """
    if user is None:
        return ["unshare", "--user", "--map-current-user", "--net", "--"], {}
    if user.is_mapped:
        mapping = [f"--map-user={user.uid}", f"--map-group={user.gid}"]
        return ["unshare", "--user", *mapping, "--net", "--"], {}
    # The namespace first: who has become another user may not make one any more.
    become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--"]
    return ["unshare", "--net", "--", *become], {}


def why_not_cut_off(user: ServerUser | None) -> str | None:
    """Return why a process cannot be cut off here; None if it can."""
    prefix, options = as_cut_off_user(user)
    try:
        done = subprocess.run(
            [*prefix, "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            cwd="/",
            **options,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        return str(cause)
    if done.returncode != 0:
        return done.stderr.decode("utf-8", "replace").strip()[:500] or f"exit code {done.returncode}"
    return None


def interfaces_of(pid: int) -> tuple[str, ...] | None:
    """Return the network interfaces that a process can use beside the loopback; None if it cannot be seen."""
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
    except OSError:
        return None
    names = sorted(line.partition(":")[0].strip() for line in lines)
    return tuple(name for name in names if name != _LOOPBACK)


def has_own_network(pid: int) -> bool:
    """Tell whether a process is in another network namespace than we are."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return False
