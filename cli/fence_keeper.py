"""The daemon's fences: a thread that takes one every so often, and one that brings them to the regions.

Neither waits for the other: while the regions are away fences are taken all the same, and wait in memory, so
many as there is room for.  The rows in the database are there in any case.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cli.looking import in_words
from cli.mirror_keeper import NewestFence
from cli.snapshot import FenceSnapshot
from pitr.errors import AlreadyRunning, PitrError
from pitr.events.fence_store import FenceWriter, WrittenFence
from pitr.events.fence_take import Identities, LogBegins, Offsets, OffsetSource, TakenFence, take_fence
from storage.store import ObjectConflict, StoreError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.events_settings import EventsSettings
    from cli.mirror_keeper import MirrorKeeper
    from pitr.postgres.fence_mark import FenceMarker

STOP_S: Final = 15.0
# Hours of fences of a thousand partitions.
WAITING_BYTES_MAX: Final = 64 << 20
# Whoever asks for a fence waits for one that is being taken, at most as long as that may last.
TAKE_WAIT_S: Final = 60.0
_FIRST_PAUSE_S: Final = 1.0
_PAUSE_S_MAX: Final = 30.0
# From here on a time that one clock gave must not be looked for by another.
SKEW_S_MAX: Final = 1.0
_NOTHING: Final = FenceSnapshot(None, None, None, None, 0, (), None, None, None, 0, 0, None, None)


class FenceKeeper:
    """Takes fences until stopped; trouble is logged when it begins and when it ends."""

    def __init__(
        self,
        source: OffsetSource,
        marker: FenceMarker,
        writer: FenceWriter,
        settings: EventsSettings,
        log: FilteringBoundLogger,
        count: Callable[[str], None],
        *,
        broker_clock: Callable[[], datetime | None] = lambda: None,
        identify: Callable[[Offsets], Identities] | None = None,
    ) -> None:
        """``broker_clock`` and ``identify`` are what ``take_fence`` takes."""
        self._broker_clock = broker_clock
        self._identify = identify
        self._source = source
        self._begins = LogBegins(source)
        self._marker = marker
        self._writer = writer
        self._settings = settings
        self._log = log
        self._count = count
        self._taking = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: deque[WrittenFence] = deque()
        self._waiting_bytes = 0
        self._seen = _NOTHING
        self._told: dict[str, str] = {}
        self._newest: NewestFence | None = None
        self._mirror: MirrorKeeper | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._taker = threading.Thread(target=self._take_until_stopped, name="fences", daemon=True)
        self._putter = threading.Thread(target=self._put_until_stopped, name="fence-store", daemon=True)

    def start(self) -> None:
        self._taker.start()
        self._putter.start()
        if self._mirror is not None:
            self._mirror.start()

    def accompany(self, mirror: MirrorKeeper) -> None:
        """Let what keeps a mirror's pairs run as long as this does."""
        self._mirror = mirror

    @property
    def newest(self) -> NewestFence | None:
        """The newest fence of this run; None before the first."""
        with self._lock:
            return self._newest

    def stop(self) -> None:
        """End soon, having put what can be put; a call that hangs is left behind."""
        self._stopping.set()
        self._wake.set()
        if self._mirror is not None:
            self._mirror.stop()
        for thread in (self._taker, self._putter):
            if thread.is_alive():  # one that was never started has nothing to end
                thread.join(STOP_S)

    def take(self) -> TakenFence:
        """Take a fence now.  Raises ServerUnavailable, ServerRefused, AlreadyRunning."""
        if not self._taking.acquire(timeout=TAKE_WAIT_S):
            raise AlreadyRunning("a fence is being taken, and does not end")
        try:
            return self._take()
        finally:
            self._taking.release()

    def try_take(self) -> None:
        """Take a fence for a backup, which it must not fail."""
        try:
            self.take()
        except PitrError as failure:
            self._tell("backup", failure.in_one_line, "no fence before the backup")
        else:
            self._tell("backup", None, "a fence before the backup")

    def send_soon(self) -> None:
        """Bring to the regions what waits, without waiting for its time."""
        self._wake.set()

    def snapshot(self) -> FenceSnapshot:
        """Return how it is now."""
        with self._lock:
            seen, waiting = self._seen, len(self._waiting)
        age_s = None if seen.at is None else max(0.0, (_now() - seen.at).total_seconds())
        mirror = None if self._mirror is None else self._mirror.snapshot()
        return replace(seen, waiting=waiting, age_s=age_s, mirror=mirror)

    # -- taking

    def _take_until_stopped(self) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            try:
                self.take()
            except Exception as failure:  # noqa: BLE001 — the top of a thread: it is told and tried again
                reason = in_words(failure)
                with self._lock:
                    self._seen = replace(self._seen, trouble=reason)
                self._tell("mark", reason, "no fence can be taken")
            # After a long call not several at once.
            due = max(due + self._settings.fence_every_s, time.monotonic())
        self._marker.close()

    def _take(self) -> TakenFence:
        began = time.monotonic()
        taken = take_fence(
            self._source,
            self._marker,
            self._settings.topics,
            now=_now,
            broker_clock=self._broker_clock,
            identify=self._identify,
            begins=self._begins,
        )
        took_s = time.monotonic() - began
        fence = taken.fence
        self._count("fence" if fence.unknown is None else "fence-unknown")
        skew_s = (fence.mark.at - fence.collector_at).total_seconds()
        written = WrittenFence.of(fence)
        with self._lock:
            self._newest = NewestFence(1 if self._newest is None else self._newest.count + 1, fence)
            dropped = self._keep(written)
            self._seen = replace(
                self._seen,
                number=fence.mark.number,
                at=fence.collector_at,
                took_s=took_s,
                partitions=sum(len(topic.partitions) for topic in fence.topics),
                missing=taken.missing,
                unknown=fence.unknown,
                trouble=None,
                skew_s=skew_s,
                dropped=self._seen.dropped + dropped,
            )
        self._tell("mark", None, "fences are taken again")
        self._tell(
            "kafka", taken.trouble, "Kafka's offsets are not known" if taken.trouble else "Kafka is back"
        )
        missing = f"Kafka does not have {', '.join(taken.missing[:10])}" if taken.missing else None
        self._tell("topics", missing, "declared topics are missing")
        # The mark comes after our own look at the clock, by as much as connecting took at most.
        is_skewed = not -SKEW_S_MAX <= skew_s <= SKEW_S_MAX + took_s
        self._tell("skew", "more than a second" if is_skewed else None, "the server's clock is not ours")
        if fence.broker_at is not None:
            broker_s = (fence.broker_at - fence.collector_at).total_seconds()
            is_skewed = not -SKEW_S_MAX - took_s <= broker_s <= SKEW_S_MAX
            self._tell(
                "broker", "more than a second" if is_skewed else None, "the broker's clock is not ours"
            )
        self._tell("prune", self._marker.unpruned, "old rows of pitr.fence cannot be deleted")
        if dropped:
            self._count("fence-dropped")
        return taken

    def _keep(self, written: WrittenFence) -> int:
        """Let a fence wait for the regions; return how many older ones had to make room."""
        self._waiting.append(written)
        self._waiting_bytes += len(written.text)
        dropped = 0
        while self._waiting_bytes > WAITING_BYTES_MAX and len(self._waiting) > 1:
            self._waiting_bytes -= len(self._waiting.popleft().text)
            dropped += 1
        return dropped

    # -- putting

    def _put_until_stopped(self) -> None:
        pause_s = self._settings.store_every_s
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            is_done = self._put_all()
            if self._stopping.is_set():
                return
            if is_done:
                pause_s = self._settings.store_every_s
            else:
                pause_s = _FIRST_PAUSE_S if pause_s > _PAUSE_S_MAX else min(pause_s * 2, _PAUSE_S_MAX)

    def _put_all(self) -> bool:
        while True:
            with self._lock:
                fences = list(self._waiting)
            if not fences:
                return True
            try:
                count = self._writer.put(fences, _now())
            except ObjectConflict:
                failure = "an object's name is taken; the newest is looked up again"
            except (StoreError, PitrError) as error:
                failure = str(error)
            except Exception as error:  # noqa: BLE001 — the top of a thread: it is told and tried again
                failure = in_words(error)
            else:
                self._forget(fences[:count])
                self._tell("store", None, "fences are put again")
                continue
            with self._lock:
                self._seen = replace(self._seen, store_error=failure)
            self._tell("store", failure, "fences cannot be put, and are tried again")
            return False

    def _forget(self, put: list[WrittenFence]) -> None:
        with self._lock:
            # Room may have been made meanwhile: only what is still there is taken away.
            for fence in put:
                if self._waiting and self._waiting[0] is fence:
                    self._waiting_bytes -= len(self._waiting.popleft().text)
            self._seen = replace(self._seen, stored_at=_now(), store_error=None)

    def _tell(self, about: str, reason: str | None, text: str) -> None:
        """Log once what changes."""
        before = self._told.get(about)
        if reason is None:
            if self._told.pop(about, None) is not None:
                self._log.info(f"better: {text}" if about not in {"mark", "kafka", "store"} else text)
        elif reason != before:
            self._told[about] = reason
            self._log.warning(text, reason=reason)


def fence_fields(taken: TakenFence) -> Mapping[str, Any]:
    """Return a fence for JSON."""
    fence = taken.fence
    return {
        "number": fence.mark.number,
        "at": fence.mark.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "timeline": str(fence.mark.timeline),
        "lsn": str(fence.mark.lsn),
        "committed_by": None if fence.committed_by is None else str(fence.committed_by),
        "cluster_id": fence.cluster_id,
        "unknown": fence.unknown,
        "trouble": taken.trouble,
        "missing_topics": list(taken.missing),
        "topics": [
            {
                "topic": topic.name,
                "topic_id": topic.topic_id,
                "partitions": [
                    {"partition": one.number, "low": one.low, "before": one.before, "after": one.after}
                    for one in topic.partitions
                ],
            }
            for topic in fence.topics
        ],
        "groups": [
            {"group": one.group, "offsets": {topic: dict(parts) for topic, parts in one.offsets.items()}}
            for one in fence.groups
        ],
    }


def _now() -> datetime:
    return datetime.now(UTC)
