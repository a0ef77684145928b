"""Archive WAL: receive it, ship it in pieces to a quorum of regions, and only then acknowledge it.

The use case: it finds where the archive ends, starts the threads, and ends them in order.  Order of
durability: spool, store at quorum, catalogue, head; the server hears of the quorum at once.

Reference: docs/format.md §6.4, §7; docs/architecture.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from pitr.archive_flow import Flow
from pitr.archive_gate import AckingEvents, Gate, GateBeside, GateSource
from pitr.archive_handover import Handover
from pitr.archive_heads import BackupList, HeadWriter, IndexWriter
from pitr.archive_intake import Intake
from pitr.archive_pipeline import Parts, Pipeline, WalKeys
from pitr.archive_recorder import Recorder
from pitr.archive_resume import Resumed, find_end, put_spooled
from pitr.archive_retry import GivenUp, Retry
from pitr.archive_seal import PieceSealer, Writer
from pitr.archive_server import ask_segment_bytes, drop_slot
from pitr.archive_status import status_at, status_before_start
from pitr.archive_stream import WalStream, ensure_slot
from pitr.archive_values import (
    Acknowledgement,
    ArchiveEvent,
    ArchiveEventKind,
    ArchiveEvents,
    ArchiveSettings,
    ArchiveStatus,
    DrainResult,
    ForkJudge,
    NoJudge,
)
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader
from pitr.errors import ServerRefused, ServerUnavailable
from pitr.layout import ArchiveId, PieceKey, SegmentKey, parse_wal_key
from pitr.pipeline.keys import content_key
from pitr.pipeline.sign import Signer
from pitr.postgres.address import ServerAddress
from pitr.postgres.replication import ReplicationConnection, SlotState
from pitr.repository import Repository
from pitr.spool import Spool
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# After the last put the threads only have to notice that all is over.
_JOIN_S: Final = 5.0
_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Machine:
    """The parts that exist once it is known where the archive ends."""

    flow: Flow
    pipeline: Pipeline
    recorder: Recorder
    source: WalStream | GateSource
    beside: GateBeside | None

    def acknowledge(self, how: Acknowledgement) -> None:
        self.flow.acknowledge(how)
        self.recorder.set_quorum(how.quorum)


class WalArchiver:
    """Archives the WAL of one cluster.  ``run`` blocks; all other methods may be called from any thread."""

    def __init__(
        self,
        *,
        address: ServerAddress,
        archive: ArchiveId,
        repository: Repository,
        signer: Signer,
        keys: WalKeys,
        spool: Spool,
        events: ArchiveEvents,
        settings: ArchiveSettings,
        gate: Gate | None = None,
        clock: Callable[[], datetime],
        random: Callable[[int], bytes],
        judge: ForkJudge = NoJudge(),  # noqa: B008 - it has no state
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address: Final = address
        self._judge: Final = judge
        self._archive: Final = archive
        self._repository: Final = repository
        self._signer: Final = signer
        self._keys: Final = keys
        self._spool: Final = spool
        self._events: Final = events
        self._settings: Final = settings
        self._gate: Final = gate
        self._clock: Final = clock
        self._random: Final = random
        self._monotonic: Final = monotonic
        self._retry: Final = Retry(events.on_event, random=random, pause_s_max=settings.retry_pause_s_max)
        self._stopping: Final = threading.Event()
        self._deadline_s: float | None = None
        self._lock = threading.Lock()
        self._machine: _Machine | None = None
        self._how = Acknowledgement(quorum=settings.quorum)
        self._start_error: str | None = None
        self._resent: list[str] = []

    def ensure_slot(self) -> SlotState:
        """Make the replication slot if need be, before the first base backup.  May be repeated.

        Raises ServerRefused, ServerUnavailable.
        """
        connection = ReplicationConnection.connect(self._address.find(), clock=self._monotonic)
        with closing(connection):
            return ensure_slot(connection, self._settings.slot)

    def run(self) -> DrainResult:
        """Archive until ``stop``; return what was and was not durable then.

        Server and store may come and go: what is received is held, and what is not stays with the
        slot.  Raises ArchiveDiverged if this is not the archive's history, or another writer writes it;
        NotAuthentic if the archive's own records are bad.  Nothing that was not at quorum was acknowledged.
        """
        try:
            machine = self._build()
        except GivenUp:
            return DrainResult(None, None, None)
        with self._lock:
            self._machine = machine
            machine.acknowledge(self._how)
        recording = threading.Thread(
            target=machine.pipeline.guard, args=(machine.recorder.run,), name="wal-record", daemon=True
        )
        machine.pipeline.start()
        recording.start()
        if machine.beside is not None:
            machine.beside.start()
        try:
            machine.source.run()
            self._drain(machine, recording)
        finally:
            machine.pipeline.stop()
            machine.pipeline.join(_JOIN_S)
            recording.join(_JOIN_S)
            self._end_gate(machine)
            machine.flow.waker.close()
        machine.pipeline.check()
        return self._result(machine)

    def stop(self, deadline_s: float) -> None:
        """Ship what has arrived, tell the server, and let ``run`` return within ``deadline_s`` or so."""
        with self._lock:
            self._deadline_s = self._monotonic() + deadline_s
            machine = self._machine
        self._stopping.set()
        if machine is None:
            self._retry.give_up()
            return
        machine.flow.drain()
        machine.flow.waker.wake()
        giving_up = threading.Timer(deadline_s, machine.pipeline.stop)
        giving_up.daemon = True
        giving_up.start()

    def look_at_server(self) -> None:
        """Look soon whether the server still leads."""
        with self._lock:
            machine = self._machine
        if machine is not None:
            machine.flow.waker.wake()

    def request_head(self) -> None:
        """Write a head soon: after a backup was made or removed."""
        with self._lock:
            machine = self._machine
        if machine is not None:
            machine.recorder.request_head()

    def acknowledge(self, how: Acknowledgement) -> None:
        """Change what the server is told is flushed, from now on and when it is connected again."""
        with self._lock:
            self._how = how
            machine = self._machine
        if machine is not None:
            machine.acknowledge(how)

    def give_up_slot(self, reason: str) -> None:
        """Drop the slot, so that the server may remove the WAL that it keeps: it is lost to the archive.

        Returns at once while WAL is streamed.  Raises ServerRefused, ServerUnavailable.
        """
        with self._lock:
            machine = self._machine
        if machine is not None and isinstance(machine.source, WalStream):
            machine.source.give_up_slot(reason)
            return
        # Streaming has not begun; when it does it makes a new one, and finds out what was lost.
        drop_slot(self._address.find(), self._settings.slot, clock=self._monotonic)
        facts, text = (("slot", self._settings.slot),), f"the slot was given up for the disk: {reason}"
        self._events.on_event(ArchiveEvent(ArchiveEventKind.SLOT_DROPPED, text, facts))

    def status(self) -> ArchiveStatus:
        """Return how archiving does at this moment."""
        with self._lock:
            machine = self._machine
        if machine is None:
            return status_before_start(self._start_error or self._retry.last_error, self._spool.held_bytes)
        state = machine.source.state
        return status_at(
            self._monotonic(),
            machine.flow.status(),
            is_streaming=state.is_streaming,
            is_handed_over=isinstance(machine.source, GateSource),
            server_end=state.server_end,
            spool_bytes=self._spool.held_bytes,
            last_head_at=machine.recorder.last_head_at,
            last_error=state.last_error or self._retry.last_error,
        )

    def wait_durable(self, timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool:
        """Wait until the WAL from ``start`` to ``end`` is at quorum; False if it is not after ``timeout_s``.

        Raises WalMissing if it never will be, because the archive has a hole there.
        """
        with self._lock:
            machine = self._machine
        if machine is None:
            self._stopping.wait(timeout_s)
            return False
        return machine.flow.wait_durable(timeline, start, end, timeout_s)

    def _build(self) -> _Machine:
        """Find where the archive ends, and put the parts together.  Raises GivenUp."""
        segment_bytes = self._ask_segment_bytes()
        resumed = self._retry.until_done("looking where the archive ends", self._resume)
        self._record_resumed(resumed)
        if self._spool.damaged:
            self._tell(
                ArchiveEventKind.SPOOL_DAMAGED, f"left out of the spool: {', '.join(self._spool.damaged)}"
            )
        writer = Writer(
            repository=self._repository.repository_id,
            archive=self._archive,
            segment_bytes=segment_bytes,
            signer=self._signer,
            content_key=content_key(self._signer, self._repository.repository_id),
            random=self._random,
        )
        return self._assemble(writer, resumed)

    def _ask_segment_bytes(self) -> int:
        """Ask the server, however long it takes it to come."""
        while not self._retry.is_given_up:
            try:
                streams, dsn = self._gate is None or not self._gate.is_source, self._address.find()
                return ask_segment_bytes(dsn, is_streamed=streams, clock=self._monotonic)
            except (ServerUnavailable, ServerRefused) as failure:
                if self._start_error != failure.message:
                    self._tell(ArchiveEventKind.SERVER_LOST, f"waiting for the server: {failure.message}")
                self._start_error = failure.message
            self._retry.pause(_PAUSE_S)
        raise GivenUp("asking the server")

    def _resume(self) -> Resumed:
        self._repository.check_signer(self._archive, self._signer)
        put_spooled(self._repository, self._spool, self._resent.append)
        return find_end(self._repository, self._archive)

    def _record_resumed(self, resumed: Resumed) -> None:
        """Tell what an earlier run left for this one to bring to quorum; it may be told twice."""
        for entry in resumed.unsigned:
            assert isinstance(entry.key, PieceKey)
            assert isinstance(entry.header, PieceHeader)
            self._events.on_piece_durable(entry.key, entry.header, entry.header_sha256)
        for text in self._resent:
            key = parse_wal_key(text) if text.startswith("wal/") else None
            if isinstance(key, SegmentKey):
                entry = self._retry.until_done("reading a header", partial(self._repository.wal.header, key))
                assert isinstance(entry.header, SegmentHeader)
                self._events.on_segment_durable(key, entry.header, entry.header_sha256)
        self._resent.clear()

    def _assemble(self, writer: Writer, resumed: Resumed) -> _Machine:
        repository, settings, events = self._repository, self._settings, self._events
        parts = Parts(
            puts=repository.puts,
            spool=self._spool,
            keys=self._keys,
            retry=self._retry,
            on_event=events.on_event,
            clock=self._clock,
            monotonic=self._monotonic,
        )
        end = resumed.end
        sequence, digest = (0, None) if end is None else (end.piece_sequence, end.piece_sha256)
        size, left = writer.segment_bytes, resumed.left
        flow = Flow(settings, segment_bytes=size, end=end, left=left, monotonic=self._monotonic)
        sealer = PieceSealer(writer, last_sequence=sequence, last_sha256=digest)
        pipeline = Pipeline(
            parts, flow, Intake(writer, sealer, resumed.known), puts_in_flight=settings.puts_in_flight_max
        )
        recorder = Recorder(
            parts,
            flow,
            self._told_when_durable(),
            heads=HeadWriter(writer, repository.puts, self._spool, resumed.head, quorum=settings.quorum),
            index=IndexWriter(writer, repository.puts, resumed.index_sha256),
            backups=BackupList(lambda: list(repository.manifests(self._archive).backups)),
            head_interval_s=settings.head_interval_s,
        )
        source, beside = self._source(writer, flow, pipeline)
        return _Machine(flow, pipeline, recorder, source, beside)

    def _source(
        self, writer: Writer, flow: Flow, pipeline: Pipeline
    ) -> tuple[WalStream | GateSource, GateBeside | None]:
        """Return where WAL comes from, and the gate that is asked beside a stream."""
        gate, on_event, stopping = self._gate, self._events.on_event, self._stopping
        if gate is not None and gate.is_source:
            handed = GateSource(gate.folder, flow, on_event, stopping=stopping, check=pipeline.check)
            handed.handover = self._handover(gate, writer, flow, handed)
            return handed, None
        stream = WalStream(
            self._address,
            self._settings,
            writer,
            self._repository,
            flow,
            self._retry,
            self._events,
            self._judge,
            stopping=stopping,
            check=pipeline.check,
            clock=self._clock,
            monotonic=self._monotonic,
        )
        if gate is None:
            return stream, None
        handover = self._handover(gate, writer, flow, None)
        return stream, GateBeside(gate.folder, handover, stream.state, on_event, stopping)

    def _handover(self, gate: Gate, writer: Writer, flow: Flow, feeder: GateSource | None) -> Handover:
        return Handover(
            gate.folder,
            writer,
            self._repository,
            flow,
            self._retry,
            self._events,
            feeder=feeder,
            judge=self._judge,
            gap_wait_s=gate.gap_wait_s,
            monotonic=self._monotonic,
        )

    def _told_when_durable(self) -> ArchiveEvents:
        if self._gate is None or self._gate.is_source:
            return self._events
        return AckingEvents(self._events, self._gate.folder)

    def _end_gate(self, machine: _Machine) -> None:
        """End the gate's thread also where an error, and nobody's wish, ended the stream."""
        if machine.beside is not None:
            self._stopping.set()
            machine.beside.join(_JOIN_S)

    def _drain(self, machine: _Machine, recording: threading.Thread) -> None:
        """Ship and record what has arrived, as far as the deadline allows."""
        machine.flow.drain()
        machine.flow.wait_shipped(self._left_s())
        machine.recorder.end()
        recording.join(self._left_s())

    def _left_s(self) -> float:
        with self._lock:
            deadline_s = self._deadline_s
        return 0.0 if deadline_s is None else max(deadline_s - self._monotonic(), 0.0)

    def _result(self, machine: _Machine) -> DrainResult:
        received, durable = machine.flow.received, machine.flow.durable
        return DrainResult(
            None if received is None else received.timeline,
            None if received is None else received.end,
            None if durable is None else durable.end,
        )

    def _tell(self, kind: ArchiveEventKind, message: str) -> None:
        self._events.on_event(ArchiveEvent(kind, message))
