"""What ``pitr adopt`` decided, as an event: noted on this host at once, signed by the daemon at its start."""

from __future__ import annotations

import os
import pwd
import socket
from datetime import datetime

from cli.adoption import Decision
from cli.lock import RunLock
from cli.server_past import ServerPast
from cli.settings import DaemonSettings
from pitr.catalogue.event_record import EventKind, Happening
from pitr.event_log import NotesFile


def decided_by() -> str:
    """Return who runs this, as far as the host knows: USER@HOST, and who became that user by sudo."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    before = os.environ.get("SUDO_USER")
    who = user if before in (None, user) else f"{before} as {user}"
    return f"{who}@{socket.gethostname()}"


def adopted_failover(decision: Decision, by: str) -> Happening:
    """Return the event: the archive goes on with the new timeline, in its epoch.  Pure."""
    fork = decision.fork
    return Happening.of(
        decision.decided_at,
        EventKind.ADOPTED,
        f"{by} decided that it was a failover: timeline {fork.following} goes on from {fork.left_at} of"
        f" timeline {fork.timeline}, and WAL up to {fork.end} of timeline {fork.ended_on} is left behind",
        **{"as": "failover"},
        by=by,
        epoch=decision.archive.epoch,
        timeline=fork.timeline,
        left_at=fork.left_at,
        ended_on=fork.ended_on,
        end=fork.end,
        following=fork.following,
    )


def adopted_restore(
    server: ServerPast, left_epoch: int | None, reason: str, by: str, now: datetime
) -> Happening:
    """Return the event: the server is archived in a new epoch, the one that the event is in.  Pure."""
    return Happening.of(
        now,
        EventKind.ADOPTED,
        f"{by} decided that the server was restored, copied or set back: a new writer epoch begins; {reason}",
        **{"as": "restore"},
        by=by,
        left_epoch="none" if left_epoch is None else left_epoch,
        timeline=server.identity.timeline,
        flushed=server.identity.flushed,
    )


def note_decision(daemon: DaemonSettings, happening: Happening) -> None:
    """Return once the decision is noted on disk; one that waits already is not noted twice.

    Raises AlreadyRunning while a daemon has the notes, NotesFailed.
    """
    daemon.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with RunLock(daemon.lock_path):
        notes = NotesFile(daemon.events_path)
        if not notes.has_alike(happening):
            notes.add(happening)
