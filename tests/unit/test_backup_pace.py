"""The pace: how many work at once, pauses, and what a change does to who waits; and a thread's priority."""

from __future__ import annotations

import ctypes
import os
import platform
import threading

import pytest

from pitr.backup_pace import Pace, PaceLimits
from pitr.errors import BackupFailed
from pitr.priority import IoClass, Priority, lower_priority

WAIT_S = 20.0


class Workers:
    """Threads that read without end, and how many of them are between two reads at once."""

    def __init__(self, pace: Pace, count: int) -> None:
        self.stop = threading.Event()
        self._pace = pace
        self._changed = threading.Condition()
        self._reads = [0] * count
        self.ended: list[Exception] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        try:
            with self._pace.working(self.stop):
                while True:
                    self._pace.spend(1, self.stop)
                    with self._changed:
                        self._reads[number] += 1
                        self._changed.notify_all()
        except BackupFailed as ended:
            self.ended.append(ended)

    def readers(self, reads: int) -> set[int]:
        """Return who reads, of so many reads from now on."""
        with self._changed:
            before = list(self._reads)
            assert self._changed.wait_for(lambda: sum(self._reads) - sum(before) >= reads, WAIT_S)
            return {number for number, was in enumerate(before) if self._reads[number] > was}

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_no_more_work_at_once_than_the_limit_says_and_a_change_holds_at_once() -> None:
    pace = Pace(PaceLimits(None, 3))
    workers = Workers(pace, 3)
    try:
        workers.readers(100)
        pace.change(PaceLimits(None, 1))
        # Each that is within a read ends it, and waits at the next.
        workers.readers(3000)
        assert len(workers.readers(1000)) == 1
        pace.change(PaceLimits(None, 3))
        seen: set[int] = set()
        while len(seen) < 3:
            seen |= workers.readers(1000)
    finally:
        workers.end()
    assert len(workers.ended) == 3


def test_a_pause_holds_everybody_and_its_time_is_counted() -> None:
    now = [100.0]
    pace = Pace(PaceLimits(None, 2), monotonic=lambda: now[0])
    pace.set_pause("a commit takes 9 s")
    assert pace.pause == "a commit takes 9 s"
    stop, done = threading.Event(), threading.Event()

    def read() -> None:
        with pace.working(stop):
            pace.spend(1, stop)
            done.set()

    thread = threading.Thread(target=read)
    thread.start()
    now[0] += 7
    pace.set_pause("a commit takes 8 s")
    now[0] += 3
    assert pace.paused_s == 10
    assert not done.is_set()
    pace.set_pause(None)
    assert done.wait(WAIT_S)
    thread.join(WAIT_S)
    now[0] += 100
    assert (pace.paused_s, pace.pause) == (10, None)


def test_who_waits_for_the_rate_ends_when_the_backup_is_stopped() -> None:
    pace, stop = Pace(PaceLimits(1.0, 1)), threading.Event()
    with pace.working(stop):
        pace.spend(1 << 20, stop)
        stop.set()
        with pytest.raises(BackupFailed, match="being stopped"):
            pace.spend(1, stop)
    # Its place is free again.
    with pace.working(threading.Event()):
        pass


def in_a_thread(priority: Priority) -> tuple[list[str], int, int | None]:
    """Return the notes, the nice value and the I/O priority of a thread that lowered its priority."""
    found: list[tuple[list[str], int, int | None]] = []

    def run() -> None:
        notes, thread = lower_priority(priority), threading.get_native_id()
        number = {"x86_64": 252, "aarch64": 31}.get(platform.machine())
        value = None if number is None else ctypes.CDLL(None).syscall(number, 1, thread)
        found.append((notes, os.getpriority(os.PRIO_PROCESS, thread), value))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT_S)
    return found[0]


@pytest.mark.parametrize(("io_class", "value"), [("best-effort", 2 << 13 | 7), ("idle", 3 << 13)])
def test_a_thread_lowers_its_own_priority_and_nobody_elses(io_class: IoClass, value: int) -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    notes, nice, found = in_a_thread(Priority(own + 3, io_class))
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    assert nice == own + 3
    # A container may forbid it, and then it is said.
    assert found in (value, None) or notes


def test_an_unknown_machine_is_told_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    notes, _, _ = in_a_thread(Priority(0, "idle"))
    assert notes == ["the copying threads keep their I/O priority: ioprio_set is not known on pdp11"]
