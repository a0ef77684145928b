"""The stream: follows one server from connection to connection and from timeline to timeline.

It only receives.  What comes goes to the flow at once; when the flow has no room the socket is not
read, and the slot keeps the WAL.  An error of the server ends one connection, never the archive; a
history that is not the archive's ends it, unless somebody says that it is a failover's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NoReturn

from pitr.archive_flow import Flow
from pitr.archive_histories import Histories
from pitr.archive_reception import Reception
from pitr.archive_retry import GivenUp, Retry
from pitr.archive_seal import Writer
from pitr.archive_values import ArchiveEvent, ArchiveEventKind, ArchiveEvents, ArchiveSettings, ForkJudge
from pitr.errors import ArchiveDiverged, ServerRefused, ServerUnavailable
from pitr.postgres.address import ServerAddress
from pitr.postgres.replication import (
    ReplicationConnection,
    ServerIdentity,
    SlotState,
    StreamEnd,
)
from pitr.postgres.replication_errors import SlotExists, SlotLost, WalRemoved
from pitr.repository import Repository
from pitr.wal.follow import (
    HINT_FORK,
    HINT_RESTORED,
    ArchiveFork,
    ReceivedEnd,
    find_fork,
    first_run,
    lost_stretches,
    next_run,
    run_after,
    segment_start,
)
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineHistory

_FIRST_PAUSE_S = 0.1
# More switches than this in one connection is no history but a loop.
_TIMELINES_MAX = 10_000


def ensure_slot(connection: ReplicationConnection, slot: str) -> SlotState:
    """Make the slot if it is not there, so that the server keeps WAL from now on; return its state.

    May be repeated.  Raises ServerRefused, ServerUnavailable.
    """
    state = connection.read_slot(slot)
    if state is None:
        with suppress(SlotExists):  # somebody else may make it meanwhile
            connection.create_slot(slot)
        state = connection.read_slot(slot)
    if state is None:
        raise ServerUnavailable(f"replication slot {slot} vanished")
    return state


class _GivenUpSlot(Exception):
    """The slot is to be given up; the connection must go first."""


@dataclass(slots=True)
class StreamState:
    """What others may ask about the stream; written by its thread only."""

    is_streaming: bool = False
    server_end: LSN | None = None
    last_error: str | None = None


class WalStream:
    """Receives WAL in the thread that calls ``run``."""

    def __init__(
        self,
        address: ServerAddress,
        settings: ArchiveSettings,
        writer: Writer,
        repository: Repository,
        flow: Flow,
        retry: Retry,
        events: ArchiveEvents,
        judge: ForkJudge,
        *,
        stopping: threading.Event,
        check: Callable[[], None],
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._address: Final = address
        self._settings: Final = settings
        self._writer: Final = writer
        self._repository: Final = repository
        self._flow: Final = flow
        self._retry: Final = retry
        self._events: Final = events
        self._judge: Final = judge
        self._stopping: Final = stopping
        self._check: Final = check
        self._clock: Final = clock
        self._monotonic: Final = monotonic
        self._histories: Final = Histories(writer, repository, retry, events.on_history)
        self._told_fork: ArchiveFork | None = None
        self._has_received = False
        self._wants_new_run = False
        self._is_slot_refused = False
        self._why_give_up: str | None = None
        self.state: Final = StreamState()

    def run(self) -> None:
        """Receive until told to stop; then until what was received is at quorum, or all is given up.

        Raises ArchiveDiverged, and whatever stopped the pipeline.
        """
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._has_received = False
            try:
                self._follow_server()
            except (ServerUnavailable, ServerRefused) as failure:
                self._note_lost(failure)
            except _GivenUpSlot:
                self._wants_new_run = True
            except GivenUp:
                return
            finally:
                self.state.is_streaming = False
                # What was received is shipped now: the next run compares from the segment's start on.
                self._flow.close_run()
            self._check()
            pause_s = _FIRST_PAUSE_S if self._has_received else pause_s
            if not self._stopping.is_set():
                self._stopping.wait(pause_s * (0.5 + self._writer.random(1)[0] / 512))
            pause_s = min(pause_s * 2, self._settings.retry_pause_s_max)

    def give_up_slot(self, reason: str) -> None:
        """Let the slot go, and the WAL that it keeps; a new one begins where the server is.  Any thread."""
        self._why_give_up = reason
        self._flow.waker.wake()

    def _note_lost(self, failure: ServerUnavailable | ServerRefused) -> None:
        text = failure.message if failure.detail is None else f"{failure.message}: {failure.detail}"
        if self.state.last_error != text:
            self._tell(ArchiveEventKind.SERVER_LOST, f"no WAL from the server, trying again: {text}")
        self.state.last_error = text

    def _follow_server(self) -> None:
        """Stream over one connection, from timeline to timeline."""
        connection = ReplicationConnection.connect(self._address.find(), clock=self._monotonic)
        try:
            self._address.note_connected(connection.endpoint)
            if self._address.leads_only and connection.is_standby():
                raise ServerUnavailable("the leader has not been promoted yet")
            identity = self._identify(connection)
            for _ in range(_TIMELINES_MAX):
                run = self._next_run(connection, identity)
                end = self._stream(connection, run)
                if end.next_timeline is None:
                    if self._stopping.is_set():
                        return
                    raise ServerUnavailable("the server ended the stream")
                self._check_end(run, end)
                identity = self._identify(connection)
        except WalRemoved as failure:
            # Whether WAL is lost is decided on a new connection, where the slot is looked at anew.
            self._wants_new_run = True
            raise ServerUnavailable(failure.message) from failure
        finally:
            connection.close()

    def _identify(self, connection: ReplicationConnection) -> ServerIdentity:
        identity, archive = connection.identify(), self._writer.archive
        if identity.system_identifier != archive.system_identifier:
            raise ArchiveDiverged(
                "this is another cluster than the archive's",
                detail=f"Its system identifier is {identity.system_identifier}, the archive's {archive}.",
                hint="Check the connection string; another cluster needs an archive of its own.",
            )
        segment_bytes = connection.segment_bytes()
        if segment_bytes != self._writer.segment_bytes:
            raise ArchiveDiverged(
                f"the server's WAL segments have {segment_bytes} bytes",
                detail=f"The archive's have {self._writer.segment_bytes}.",
                hint="After pg_resetwal a new epoch is needed: `pitr adopt --as restore --identity FILE`.",
            )
        return identity

    def _next_run(self, connection: ReplicationConnection, identity: ServerIdentity) -> RunStart:
        """Decide where to begin.  History files are put before the WAL that they explain.

        Not before it is decided, though: a history that is refused must leave nothing behind.
        """
        slot = self._live_slot(connection)
        files = self._histories.read(connection, identity.timeline)
        history = files[-1].history() if files else TimelineHistory(identity.timeline)
        received, segment_bytes = self._flow.received, self._writer.segment_bytes
        self._wants_new_run = self._wants_new_run or self._why_give_up is not None
        if received is None and self._why_give_up is not None:
            lost_from = ReceivedEnd(identity.timeline, slot.restart or identity.flushed)
            run = self._begin_anew(connection, lost_from, history)
        elif received is None:
            timeline, kept_from = slot.timeline or identity.timeline, slot.restart or identity.flushed
            run = first_run(timeline, kept_from, segment_bytes=segment_bytes)
        else:
            run = self._run_on(connection, identity, received, history)
        if slot.restart is not None and run.start < segment_start(slot.restart, self._writer.segment_bytes):
            # Perhaps it is there still: the server is asked for it, and only its word is a loss.
            self._tell(
                ArchiveEventKind.SLOT_AHEAD,
                f"slot {self._settings.slot} keeps WAL from {slot.restart} on; {run.start} is needed",
            )
        self._histories.put(files)
        return run

    def _run_on(
        self,
        connection: ReplicationConnection,
        identity: ServerIdentity,
        received: ReceivedEnd,
        history: TimelineHistory,
    ) -> RunStart:
        """Return the run that goes on from what was received.  Raises ArchiveDiverged."""
        segment_bytes = self._writer.segment_bytes
        fork = find_fork(received, self._histories.own(received.timeline, history), history)
        if fork is not None:
            self._follow_fork(fork)
            if self._wants_new_run:
                return self._begin_anew(connection, ReceivedEnd(fork.timeline, fork.left_at), history)
            durable = self._flow.durable
            since = None if durable is None else durable.start
            run = run_after(fork, since, segment_bytes=segment_bytes)
            if run.start > fork.left_at:
                # The new primary had more of the old timeline than ever came here.
                self._tell_lost(ReceivedEnd(fork.timeline, fork.left_at), history, run.start)
            return run
        following = next_run(received, history, identity.flushed, segment_bytes=segment_bytes)
        if following is None:
            self._refuse_earlier_end(connection, identity, received.end)
        if self._wants_new_run:
            return self._begin_anew(connection, received, history, following)
        return following

    def _follow_fork(self, fork: ArchiveFork) -> None:
        """Let the archive go on with a server that lacks its end, if somebody says that it was a failover.

        What is archived after the fork stays where it is, as WAL of its timeline.  Raises ArchiveDiverged.
        """
        reason = self._judge.why_failover(fork)
        if reason is None:
            raise ArchiveDiverged(
                f"the server's timeline {fork.following} left the archive's below its end",
                detail=f"It left timeline {fork.timeline} at {fork.left_at}; the archive has {fork.end} of"
                f" timeline {fork.ended_on}.",
                hint=HINT_FORK,
            )
        if fork != self._told_fork:
            self._events.on_event(ArchiveEvent(ArchiveEventKind.ORPHANED, f"{fork}; {reason}", fork=fork))
        self._told_fork = fork

    def _refuse_earlier_end(
        self, connection: ReplicationConnection, identity: ServerIdentity, end: LSN
    ) -> NoReturn:
        if connection.is_standby():
            raise ServerUnavailable(f"the standby has not got to {end} yet")
        raise ArchiveDiverged(
            "the server's WAL ends before the archive's",
            detail=f"It ends at {identity.flushed}, the archive at {end} of the same timeline.",
            hint=HINT_RESTORED,
        )

    def _begin_anew(
        self,
        connection: ReplicationConnection,
        received: ReceivedEnd,
        history: TimelineHistory,
        following: RunStart | None = None,
    ) -> RunStart:
        """Leave a hole, and say so: what the server no longer has cannot be archived.

        The slot is made anew, for only a new one is sure to stand where the server still has WAL.
        """
        connection.drop_slot(self._settings.slot)
        why, self._why_give_up = self._why_give_up, None
        if why is not None:
            facts = (("lost_from", str(received.end)), ("reason", why), ("slot", self._settings.slot))
            self._tell(ArchiveEventKind.SLOT_DROPPED, f"the slot was given up for the disk: {why}", facts)
        slot, identity = self._live_slot(connection), connection.identify()
        run = first_run(
            slot.timeline or identity.timeline,
            slot.restart or identity.flushed,
            segment_bytes=self._writer.segment_bytes,
        )
        self._wants_new_run = False
        if why is not None and following is not None and run.start <= received.end:
            # The server needs the WAL itself, for a crash: nothing is lost with the slot.
            return following
        self._tell_lost(received, history, run.start)
        return run

    def _tell_lost(self, received: ReceivedEnd, history: TimelineHistory, until: LSN) -> None:
        """Say that WAL can never be archived; only a new backup reaches beyond it."""
        for lost in lost_stretches(received, history, until):
            facts = (("end", str(lost.end)), ("start", str(lost.start)), ("timeline", str(lost.timeline)))
            self._tell(ArchiveEventKind.WAL_LOST, f"WAL {lost} is lost: the server no longer has it", facts)
        self._events.request_full_backup(f"WAL up to {until} is lost: the server no longer has it")

    def _live_slot(self, connection: ReplicationConnection) -> SlotState:
        """Return the slot's state; one that is gone or was invalidated is made anew."""
        name = self._settings.slot
        known = connection.read_slot(name)
        if known is not None and (known.restart is None or self._is_slot_refused):
            # Invalidated (max_slot_wal_keep_size, or PostgreSQL 18's idle_replication_slot_timeout): it
            # protects nothing any more.  The WAL may be there all the same: that is asked for next.
            connection.drop_slot(name)
            known = None
        self._is_slot_refused = False
        if known is not None:
            return known
        state = ensure_slot(connection, name)
        self._tell(ArchiveEventKind.SLOT_CREATED, f"replication slot {name} was made")
        return state

    def _stream(self, connection: ReplicationConnection, run: RunStart) -> StreamEnd:
        """Receive one run; return why it ended.  Raises ServerUnavailable, WalRemoved."""
        try:
            end = connection.start_streaming(self._settings.slot, run.start, run.timeline)
        except SlotLost as failure:
            # Of a slot that was idle too long this refusal is all that this protocol tells.
            self._is_slot_refused = True
            raise ServerUnavailable(failure.message) from failure
        self._flow.begin(run)
        if end is not None:
            return end
        self.state.is_streaming, self.state.last_error = True, None
        self._tell(ArchiveEventKind.STREAMING, f"streaming timeline {run.timeline} from {run.start}")
        reception = Reception(
            connection,
            run,
            self._flow,
            self._settings,
            stopping=self._stopping,
            check=self._check_on,
            clock=self._clock,
            monotonic=self._monotonic,
        )
        try:
            while True:
                if self._why_give_up is not None:
                    raise _GivenUpSlot
                ended = reception.step()
                self.state.server_end = reception.server_end
                if ended is not None:
                    return ended
        finally:
            self._has_received = reception.has_received
            if reception.is_held_back:
                self._tell(ArchiveEventKind.BACKLOG_FULL, "the backlog was full; the slot kept the WAL")

    def _check_on(self) -> None:
        """Raise what has stopped the pipeline, or ServerUnavailable if another server leads now."""
        self._check()
        self._address.check()

    def _check_end(self, run: RunStart, end: StreamEnd) -> None:
        received = self._flow.received
        if received is None or end.next_start is None or received.end != end.next_start:
            raise ServerUnavailable(
                f"timeline {run.timeline} ended at {end.next_start}, before all of it came"
            )
        self._tell(
            ArchiveEventKind.TIMELINE_SWITCHED,
            f"timeline {run.timeline} ended at {end.next_start}; {end.next_timeline} follows",
        )

    def _tell(self, kind: ArchiveEventKind, message: str, facts: tuple[tuple[str, str], ...] = ()) -> None:
        self._events.on_event(ArchiveEvent(kind, message, facts))
