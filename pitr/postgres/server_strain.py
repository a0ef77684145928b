"""What a server says of its own strain: how far its standbys are, and how long a commit takes."""

from __future__ import annotations

from dataclasses import dataclass

from pitr.postgres.server import Server
from pitr.wal.lsn import LSN


@dataclass(frozen=True, slots=True)
class Replayed:
    """A standby's name, and how far it has replayed."""

    name: str
    replayed: LSN


@dataclass(frozen=True, slots=True)
class StandbyLag:
    """The server's end of WAL and its standbys; ``is_hidden`` if the role may not see some of them."""

    server_end: LSN
    standbys: tuple[Replayed, ...]
    is_hidden: bool


class ServerStrain:
    """Asks in a session that is used for nothing else.  Raises as ``Server`` does."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._can_commit = not server.rows("SELECT pg_is_in_recovery()")[0][0]

    def commit(self) -> bool:
        """Commit a transaction that says nothing, durably; False on a standby, where nobody commits."""
        if not self._can_commit:
            return False
        # Transactional, so that it has a commit record, which the client waits for as for any other.
        self._server.rows("SELECT pg_logical_emit_message(true, 'pitr', '')")
        return True

    def standbys(self) -> StandbyLag:
        """Return who replays, and how far.  Receivers that replay nothing, as ours, are left out."""
        rows = self._server.rows(
            "SELECT r.application_name, r.replay_lsn::text, r.state IS NULL, e.lsn::text"
            " FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
            " ELSE pg_current_wal_lsn() END AS lsn) e LEFT JOIN pg_stat_replication r ON true"
        )
        return StandbyLag(
            LSN.parse(str(rows[0][3])),
            tuple(
                Replayed(str(name or "unnamed"), LSN.parse(str(lsn)))
                for name, lsn, _, _ in rows
                if lsn is not None
            ),
            any(name is not None and hidden for name, _, hidden, _ in rows),
        )
