"""A standby whose replay is paused: then it stands at one LSN, exactly, for as long as somebody looks at it.

Reference: PostgreSQL manual, "Recovery Control Functions".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.scratch_session import ScratchSession
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# A record that waits for a query to end, or for a cleanup lock, holds the pause up.
PAUSE_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.1
_STATEMENT_TIMEOUT_S: Final = 60.0
_LOOK: Final = """
SELECT pg_get_wal_replay_pause_state(), pg_last_wal_replay_lsn()::text,
       (SELECT system_identifier FROM pg_control_system()),
       (SELECT timeline_id FROM pg_control_checkpoint()), current_setting('server_version_num')::int"""


@dataclass(frozen=True, slots=True)
class PausedAt:
    """Where a standby stands; ``timeline`` is that of its last restartpoint."""

    lsn: LSN
    system_identifier: int
    timeline: TimelineId
    server_version: int


@contextmanager
def paused_replay(
    dsn: str, *, timeout_s: float = PAUSE_TIMEOUT_S, monotonic: Callable[[], float] = time.monotonic
) -> Iterator[PausedAt]:
    """Hold a standby's replay, and give where it stands; it goes on afterwards, unless it was paused before.

    Raises ServerRefused if it is no standby, ServerUnavailable if it does not pause in time, QueryFailed.
    """
    with ScratchSession(dsn, superuser=None, database="postgres", timeout_s=_STATEMENT_TIMEOUT_S) as session:
        if not session.value("SELECT pg_is_in_recovery()"):
            raise ServerRefused(
                "a fingerprint is taken on a standby",
                detail="on a primary nothing stands still, so no digest would have an exact LSN",
                hint="name a standby, such as one whose delay nobody minds",
            )
        was_paused = session.value("SELECT pg_is_wal_replay_paused()")
        session.rows("SELECT pg_wal_replay_pause()")
        try:
            yield _wait(session, monotonic() + timeout_s, monotonic)
        finally:
            if not was_paused:
                session.rows("SELECT pg_wal_replay_resume()")


def _wait(session: ScratchSession, deadline: float, monotonic: Callable[[], float]) -> PausedAt:
    while True:
        state, lsn, system, timeline, version = session.rows(_LOOK)[0]
        if state == "paused":
            return PausedAt(
                LSN.parse(str(lsn)),
                int(str(system)) % (1 << 64),
                TimelineId(int(str(timeline))),
                int(str(version)),
            )
        if monotonic() >= deadline:
            raise ServerUnavailable("the standby's replay does not pause", hint="look for long queries on it")
        time.sleep(_POLL_S)
