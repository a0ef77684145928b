"""Hand-over: what becomes of the files that PostgreSQL's ``archive_command`` left at the gate.

Each is acknowledged once the archive holds the same bytes at quorum, and never before.  Beside the stream
files are only compared; where nothing is streamed, a ``Feeder`` gives the archive what it lacks.  Other bytes
under a name that is archived are kept aside, and never acknowledged.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from pitr.archive_flow import Flow
from pitr.archive_retry import Retry
from pitr.archive_seal import Writer
from pitr.archive_values import ArchiveEvent, ArchiveEventKind, ArchiveEvents, DurableEnd, ForkJudge
from pitr.catalogue.records import HistoryRecord
from pitr.errors import ArchiveDiverged, MalformedValue, ServerUnavailable
from pitr.gate_compare import Comparison, compare_segment
from pitr.gate_folder import GateFolder, HandedFile
from pitr.repository import Repository
from pitr.wal.follow import HINT_FORK, ArchiveFork, ReceivedEnd, find_fork
from pitr.wal.handed import (
    Feed,
    HandedKind,
    Known,
    Refuse,
    Step,
    Wait,
    first_page_fault,
    handed_end,
    next_step,
    step_on_fork,
)
from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER_BYTES
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import HISTORY_BYTES_MAX, TimelineHistory, TimelineId
from storage.store import ObjectConflict

_FED_MAX: Final = 4096
_HISTORIES_AGE_S: Final = 5.0
# The first of a timeline may give its ancestor's end, and itself.
_STEPS_MAX: Final = 3
_READ_BYTES: Final = 1 << 20


class Feeder(Protocol):
    """Who gives WAL to the archive."""

    def feed(self, descriptor: int, feed: Feed) -> None:
        """Give the file's bytes; they are not durable yet when this returns."""


@dataclass(frozen=True, slots=True)
class _Gap:
    """A file that does not follow on the archive's end; ``since_s`` is when it was first seen so."""

    file: HandedFile
    received: ReceivedEnd
    since_s: float


class Handover:
    """Looks at what was handed over.  Not thread-safe.

    ``gap_wait_s``: how long WAL before a file may be missing until it counts as lost.
    """

    def __init__(
        self,
        folder: GateFolder,
        writer: Writer,
        repository: Repository,
        flow: Flow,
        retry: Retry,
        events: ArchiveEvents,
        *,
        feeder: Feeder | None,
        judge: ForkJudge,
        gap_wait_s: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._folder: Final = folder
        self._writer: Final = writer
        self._repository: Final = repository
        self._flow: Final = flow
        self._retry: Final = retry
        self._events: Final = events
        self._feeder: Final = feeder
        self._judge: Final = judge
        self._told_fork: ArchiveFork | None = None
        self._gap_wait_s: Final = gap_wait_s
        self._monotonic: Final = monotonic
        self._histories: dict[TimelineId, TimelineHistory] = {}
        self._histories_at_s: float | None = None
        self._fed: dict[str, tuple[int, int]] = {}
        self._gap: _Gap | None = None

    def look(self) -> None:
        """Deal with each file as far as it goes now.  Raises StoreError, OSError, GivenUp."""
        gap: HandedFile | None = None
        for file in self._folder.handed():
            if self._folder.is_acked_since(file):
                self._folder.remove(file)
            elif file.name.kind is HandedKind.LABEL:
                # It repeats what the base backup's own manifest says.
                self._acknowledge(file)
            elif file.name.kind is HandedKind.HISTORY:
                self._take_history(file)
            elif self._take_segment(file) and gap is None:
                gap = file
        self._note_gap(gap)

    # Segments.

    def _take_segment(self, file: HandedFile) -> bool:
        """Deal with a segment; True if WAL before it is missing."""
        descriptor = self._folder.open(file)
        try:
            fault = self._fault(descriptor, file)
            if fault is not None:
                self._refuse(file, fault)
                return False
            for _ in range(_STEPS_MAX):
                step = self._step(file)
                if not isinstance(step, Feed):
                    return self._settle(descriptor, file, step)
                if self._feeder is None or not self._feed(descriptor, file, step):
                    return False
            return False
        finally:
            os.close(descriptor)

    def _fault(self, descriptor: int, file: HandedFile) -> str | None:
        """Return why the file cannot be what its name says."""
        assert file.name.segment is not None
        size_bytes = self._writer.segment_bytes
        if file.size_bytes != size_bytes:
            return f"it has {file.size_bytes} bytes, a segment has {size_bytes}"
        return first_page_fault(
            os.pread(descriptor, LONG_HEADER_BYTES, 0),
            file.name.segment,
            system_identifier=self._writer.archive.system_identifier,
            segment_bytes=size_bytes,
        )

    def _step(self, file: HandedFile) -> Step:
        durable = self._flow.durable
        received = self._flow.received
        if self._feeder is None:
            received = None
            if durable is not None and durable.end is not None:
                received = ReceivedEnd(durable.timeline, durable.end)
            if received is None:
                return Wait("nothing is archived yet")
        for timeline in (file.name.timeline, *(() if received is None else (received.timeline,))):
            self._know_histories(timeline)
        history = self._histories.get(file.name.timeline)
        fork = None if self._feeder is None or history is None else self._failover(history)
        end = handed_end(file.name, self._histories, self._writer.segment_bytes)
        if fork is not None and end is not None:
            since = None if durable is None else durable.start
            return step_on_fork(file.name, fork, since, end, segment_bytes=self._writer.segment_bytes)
        return next_step(file.name, received, self._histories, segment_bytes=self._writer.segment_bytes)

    def _settle(self, descriptor: int, file: HandedFile, step: Known | Wait | Refuse) -> bool:
        if isinstance(step, Wait):
            return step.is_gap
        if isinstance(step, Refuse):
            self._refuse(file, step.reason)
            return False
        durable = self._flow.durable
        if durable is None or not _reaches(durable, file.name.timeline, step.end):
            return False
        if self._fed.get(file.name.text) == file.stamp:
            del self._fed[file.name.text]
            self._acknowledge(file)
            return False
        self._compare(descriptor, file, step.end, durable)
        return False

    def _compare(self, descriptor: int, file: HandedFile, end: LSN, durable: DurableEnd) -> None:
        assert file.name.segment is not None
        found = compare_segment(descriptor, file.name.segment, end, self._repository, self._writer)
        if found is Comparison.EQUAL:
            self._acknowledge(file)
        elif found is Comparison.DIFFERENT:
            self._keep_aside(descriptor, file)
        elif found is Comparison.COVERED and file.name.kind is HandedKind.PARTIAL:
            # A failover lost what the piece holds beyond; the next timeline's first segment, which comes only
            # after this file, repeats all up to there.
            self._acknowledge(file)
        elif durable.start is not None and end <= durable.start:
            # Else the archiver would never get further, and the server's disk would fill for nothing.
            self._tell(
                ArchiveEventKind.HANDED_OUTSIDE,
                f"{file.name.text} is acknowledged and not archived: it lies before {durable.start}, where"
                " the archive begins, or began anew after a hole",
            )
            self._acknowledge(file)
        else:
            self._refuse(file, "the archive lacks WAL of it that it should have")

    def _feed(self, descriptor: int, file: HandedFile, feed: Feed) -> bool:
        """Give the archive what it lacks; False if what it has differs."""
        assert self._feeder is not None
        assert file.name.segment is not None
        known_to, durable = feed.run.known_to, self._flow.durable
        if known_to is not None and feed.run.timeline == file.name.timeline and durable is not None:
            if not _reaches(durable, feed.run.timeline, known_to):
                return False
            found = compare_segment(descriptor, file.name.segment, known_to, self._repository, self._writer)
            if found is Comparison.DIFFERENT:
                self._keep_aside(descriptor, file)
                return False
        self._feeder.feed(descriptor, feed)
        if len(self._fed) >= _FED_MAX:
            self._fed.pop(next(iter(self._fed)))
        self._fed[file.name.text] = file.stamp
        return True

    def _note_gap(self, file: HandedFile | None) -> None:
        """Wait for what is missing before ``file``; after a time begin anew there, and say what is lost."""
        received, now_s = self._flow.received, self._monotonic()
        if file is None or received is None or self._feeder is None:
            self._gap = None
            return
        gap = self._gap
        if gap is None or gap.file.name != file.name or gap.received != received:
            self._gap = _Gap(file, received, now_s)
            return
        if now_s - gap.since_s < self._gap_wait_s:
            return
        end = handed_end(file.name, self._histories, self._writer.segment_bytes)
        assert file.name.segment is not None
        assert end is not None
        start = LSN(file.name.segment.start_offset(self._writer.segment_bytes))
        reason = f"WAL from {received.end} to {start} is lost: PostgreSQL archives what comes after it"
        descriptor = self._folder.open(file)
        try:
            facts = (
                ("end", str(start)),
                ("start", str(received.end)),
                ("timeline", str(file.name.timeline)),
            )
            self._tell(ArchiveEventKind.WAL_LOST, reason, facts)
            self._feeder.feed(descriptor, Feed(RunStart(file.name.timeline, start, None, follows=False), end))
            self._fed[file.name.text] = file.stamp
        finally:
            os.close(descriptor)
        self._gap = None
        self._events.request_full_backup(reason)

    # History files.

    def _take_history(self, file: HandedFile) -> None:
        descriptor = self._folder.open(file)
        try:
            content = os.read(descriptor, HISTORY_BYTES_MAX + 1)
            record = HistoryRecord(self._writer.repository, self._writer.archive, file.name.timeline, content)
            try:
                history = record.history()
            except MalformedValue as cause:
                self._refuse(file, cause.message)
                return
            known = self._archived_history(file.name.timeline)
            if known is None and self._feeder is not None:
                reason = self._foreign(history)
                if reason is not None:
                    self._refuse(file, reason)
                    return
                known = self._put_history(record)
            if known is None:
                return  # the stream brings it
            if known.content == content:
                self._histories[file.name.timeline] = history
                self._acknowledge(file)
            else:
                self._keep_aside(descriptor, file)
        finally:
            os.close(descriptor)

    def _archived_history(self, timeline: TimelineId) -> HistoryRecord | None:
        """Return what is archived, None if nothing that anybody signed is.

        It is asked for by listing: one region that is away, or holds something else, must not say for all
        that the file may be there.
        """
        return next(iter(self._repository.listed_histories(self._writer.archive, timeline).records), None)

    def _put_history(self, record: HistoryRecord) -> HistoryRecord | None:
        """Put a history file; return the one that is archived then."""
        try:
            self._retry.until_done(
                "putting a history file", partial(self._repository.put_history, record, self._writer.signer)
            )
        except ObjectConflict:
            return self._archived_history(record.timeline)
        self._events.on_history(record)
        return record

    def _foreign(self, history: TimelineHistory) -> str | None:
        """Return why a new timeline is not one of the archive's; a history that is refused is not kept."""
        received = self._flow.received
        if received is None or history.timeline == received.timeline:
            return None
        self._know_histories(received.timeline)
        past = self._histories.get(received.timeline)
        if past is not None and any(one.timeline == history.timeline for one in past.switches):
            return None
        if self._failover(history) is not None:
            return None
        left_at = next((one.lsn for one in history.switches if one.timeline == received.timeline), None)
        if left_at is None:
            return f"timeline {received.timeline}, where the archive ends, is not in its past"
        if left_at < received.end:
            return f"it left the archive's timeline at {left_at}, below its end {received.end}: {HINT_FORK}"
        return None

    def _failover(self, history: TimelineHistory) -> ArchiveFork | None:
        """Return where a later timeline left the archive below its end, if somebody says: in a failover.

        What is archived after the fork stays, as WAL of its timeline.
        """
        received = self._flow.received
        if received is None or history.timeline <= received.timeline:
            return None
        own = self._histories.get(received.timeline, TimelineHistory(received.timeline))
        try:
            fork = find_fork(received, own, history)
            # Had the new primary more of the old timeline than ever came here, a hole would have to be told.
            if fork is None or fork.follows_at != fork.left_at:
                return None
            reason = self._judge.why_failover(fork)
        except (ArchiveDiverged, ServerUnavailable):
            return None  # it is refused, and PostgreSQL asks again
        if reason is None:
            return None
        if fork != self._told_fork:
            self._events.on_event(ArchiveEvent(ArchiveEventKind.ORPHANED, f"{fork}; {reason}", fork=fork))
        self._told_fork = fork
        return fork

    def _know_histories(self, timeline: TimelineId) -> None:
        """Read the archive's history files, again if one is asked for that is not known."""
        now_s, at_s = self._monotonic(), self._histories_at_s
        if at_s is not None and (
            timeline.number == 1 or timeline in self._histories or now_s - at_s < _HISTORIES_AGE_S
        ):
            return
        self._histories_at_s = now_s
        # What cannot be used explains nothing: WAL of such a timeline waits, and all other goes on.
        for record in self._repository.listed_histories(self._writer.archive).records:
            self._histories[record.timeline] = record.history()

    # The outcomes.

    def _acknowledge(self, file: HandedFile) -> None:
        self._folder.acknowledge(file.name.text, copy=file)
        self._folder.remove(file)

    def _refuse(self, file: HandedFile, reason: str) -> None:
        self._folder.refuse(file.name.text, reason, copy=file)
        self._folder.remove(file)
        self._tell(ArchiveEventKind.HANDED_REFUSED, f"{file.name.text} is not acknowledged: {reason}")

    def _keep_aside(self, descriptor: int, file: HandedFile) -> None:
        digest = hashlib.sha256()
        at = 0
        while content := os.pread(descriptor, _READ_BYTES, at):
            digest.update(content)
            at += len(content)
        is_kept = self._folder.keep_aside(file, digest.digest())
        kept = "a copy is kept aside" if is_kept else "as many copies are kept aside already"
        self._folder.refuse(file.name.text, "other bytes are archived under this name", copy=file)
        self._tell(
            ArchiveEventKind.HANDED_DIFFERS,
            f"{file.name.text} was handed over with other bytes than are archived under that name; {kept}:"
            " two servers write one archive, or this one was set back",
        )

    def _tell(self, kind: ArchiveEventKind, message: str, facts: tuple[tuple[str, str], ...] = ()) -> None:
        self._events.on_event(ArchiveEvent(kind, message, facts))


def _reaches(durable: DurableEnd, timeline: TimelineId, end: LSN) -> bool:
    """Tell whether WAL up to ``end`` is at quorum; a later timeline, of a greater number, comes after it."""
    is_past = timeline < durable.timeline
    return durable.end is not None and (is_past or (timeline == durable.timeline and end <= durable.end))
