"""What it means that the server is a standby: whether it is meant so, and what fits if it is not.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from verifiers.base import Finding, Severity

# What an operator writes who means a standby.  The second goes on when it is promoted.
MEANT: Final = frozenset({"standby", "prefer-standby", "read-only"})
CHECK: Final = "server.role"


@dataclass(frozen=True, slots=True)
class StandbyWish:
    """What the configuration says of the server: which of several, whose files, and what Patroni calls it.

    ``session`` is ``target_session_attrs``.  ``leads_standby_cluster`` None: Patroni is not asked.
    """

    session: str | None
    has_several_hosts: bool
    reads_files: bool
    leads_standby_cluster: bool | None = None


def judge_standby(wish: StandbyWish) -> Finding:
    """Return the finding for a server that is a standby."""
    if wish.leads_standby_cluster:
        return _meant("this is the leader of a standby cluster")
    if wish.leads_standby_cluster is False:
        text = "the leader is still a standby: nothing is streamed from it before it is promoted"
        return Finding(CHECK, Severity.WARN, "server", text, "see the members' state: patronictl list")
    if wish.session in MEANT:
        return _meant("this is a standby, as [cluster] dsn asks for")
    keep = "if it is meant to be the source, say so in [cluster] dsn with target_session_attrs=prefer-standby"
    if wish.has_several_hosts:
        other = "else ask for the primary there, with target_session_attrs=read-write"
    elif wish.reads_files:
        other = (
            'else run the daemon on the primary\'s host, or back up with [backup] source = "protocol" and'
            " name all hosts with target_session_attrs=read-write"
        )
    else:
        other = "else name the primary, or all hosts with target_session_attrs=read-write"
    return Finding(CHECK, Severity.WARN, "server", "this is a standby", f"{keep}; {other}")


def _meant(what: str) -> Finding:
    text = f"{what}: WAL is archived once it has received it, and no commit of the primary waits for that"
    return Finding(CHECK, Severity.OK, "server", text)
