"""The control socket, the lock and the timetable, each as a real thing."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fix_cli import wait_until

from cli.control import ControlRequest, ask_daemon
from cli.control_server import ControlServer
from cli.errors import DaemonRefused, ExitCode, describe
from cli.lock import RunLock
from cli.timetable import RETRY_MAX_S, Task, Timetable, due_at, retry_pause_s
from pitr.errors import AlreadyRunning, MalformedValue, NotInitialised, TargetRefused

WAIT_S = 20.0


def _handler(request: ControlRequest, progress: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    if request.verb == "backup":
        raise TargetRefused("not now", detail="because", hint="later")
    progress({"step": 1})
    progress({"step": 2})
    return {"verb": request.verb, **request.options}


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control.sock"
    server = ControlServer(path, _handler)
    server.start()
    yield path
    server.stop()
    assert not path.exists()


def test_a_request_gets_its_progress_and_its_result(socket_path: Path) -> None:
    steps: list[Mapping[str, Any]] = []
    result = ask_daemon(
        socket_path, ControlRequest("status", {"deep": True}), timeout_s=WAIT_S, on_progress=steps.append
    )
    assert result == {"verb": "status", "deep": True}
    assert steps == [{"step": 1}, {"step": 2}]


def test_an_error_in_the_daemon_is_shown_as_if_it_had_happened_here(socket_path: Path) -> None:
    with pytest.raises(DaemonRefused) as caught:
        ask_daemon(socket_path, ControlRequest("backup"), timeout_s=WAIT_S)
    failure = describe(caught.value)
    assert (failure.number, failure.exit_code) == (4001, ExitCode.NOT_RESTORABLE)
    assert (failure.message, failure.why, failure.next) == ("not now", "because", "later")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b'{"verb":"rm"}\n', b"\xff\n", b'{"verb":"status","x":1}\n', b"[" * 60_000 + b"\n"],
)
def test_garbage_is_refused_and_the_next_request_still_answered(socket_path: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(str(socket_path))
        connection.sendall(line)
        assert b'"error"' in connection.recv(65_536)
    assert ask_daemon(socket_path, ControlRequest("status"), timeout_s=WAIT_S)


def test_an_endless_line_is_cut_off(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(str(socket_path))
        with pytest.raises(OSError):
            connection.sendall(b"x" * (64 << 20))
    assert ask_daemon(socket_path, ControlRequest("status"), timeout_s=WAIT_S)


def test_only_the_owner_may_open_the_socket(socket_path: Path) -> None:
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600


def test_no_daemon_is_told_as_not_initialised(tmp_path: Path) -> None:
    with pytest.raises(NotInitialised, match="no daemon is running"):
        ask_daemon(tmp_path / "nobody.sock", ControlRequest("status"), timeout_s=WAIT_S)


def test_a_dead_daemons_socket_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(path, _handler)
    server.start()
    assert ask_daemon(path, ControlRequest("status"), timeout_s=WAIT_S)
    server.stop()


def test_a_daemon_that_had_no_descriptor_left_answers_when_it_has_some_again(socket_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(WAIT_S)
        lowest_free = os.dup(asking.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            asking.connect(str(socket_path))
            time.sleep(1.0)  # in which it is refused a descriptor for this connection
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        asking.sendall(ControlRequest("status").encode())
        assert b"progress" in asking.recv(65_536)


def test_a_request_is_decoded_strictly() -> None:
    request = ControlRequest("backup", {"label": "before the upgrade"})
    assert ControlRequest.decode(request.encode()) == request
    with pytest.raises(MalformedValue):
        ControlRequest.decode(b'{"verb": 5}')


def test_the_second_daemon_is_refused_with_the_first_ones_process_id(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cli.lock import RunLock\n"
        "RunLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(AlreadyRunning) as caught:
        RunLock(tmp_path / "lock").acquire()
    assert str(holder.pid) in (caught.value.detail or "")
    holder.kill()
    holder.wait(WAIT_S)
    holder.stdin.close()
    holder.stdout.close()
    with RunLock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("last", "due"),
    [
        (None, NOW),
        (NOW - timedelta(days=40), NOW),
        (NOW - timedelta(hours=1), NOW + timedelta(hours=23)),
        (NOW, NOW + timedelta(days=1)),
    ],
)
def test_a_missed_run_is_due_once_at_once(last: datetime | None, due: datetime) -> None:
    assert due_at(last, DAY_S, NOW) == due


class _Reports:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.changed = threading.Condition()

    def __call__(self, name: str, event: str, _error: str | None) -> None:
        with self.changed:
            self.seen.append((name, event))
            self.changed.notify_all()

    def wait_for(self, name: str, event: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: (name, event) in self.seen, WAIT_S), self.seen


def _now() -> datetime:
    return datetime.now(UTC)


def test_a_task_that_never_ran_runs_at_once_and_only_once() -> None:
    reports = _Reports()
    runs: list[datetime] = []
    task = Task("full", DAY_S, 60, lambda _cancel: runs.append(_now()), lambda: None)
    timetable = Timetable([task], now=_now, report=reports)
    timetable.start()
    reports.wait_for("full", "done")
    (state,) = timetable.states()
    assert timetable.stop(WAIT_S)
    assert len(runs) == 1
    assert state.next_at is None or state.next_at > _now() + timedelta(hours=23)
    assert (state.runs, state.failures, state.last_error) == (1, 0, None)


def test_a_failed_task_is_tried_again_before_its_period_ends() -> None:
    reports = _Reports()
    tries: list[int] = []

    def fail_once(_cancel: threading.Event) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("no room")

    timetable = Timetable(
        [Task("full", DAY_S, 60, fail_once, lambda: None, retry_first_s=0.05)], now=_now, report=reports
    )
    timetable.start()
    reports.wait_for("full", "failed")
    reports.wait_for("full", "done")
    assert timetable.stop(WAIT_S)
    assert len(tries) == 2


def test_a_run_that_was_asked_for_before_the_start_is_not_put_off() -> None:
    reports = _Reports()
    timetable = Timetable(
        [Task("full", DAY_S, 60, lambda _cancel: None, lambda: _now() - timedelta(hours=1))],
        now=_now,
        report=reports,
    )
    assert timetable.run_soon("full")
    timetable.start()
    reports.wait_for("full", "done")
    assert timetable.stop(WAIT_S)
    assert reports.seen == [("full", "done")]


def test_pauses_after_failures_double_from_seconds_to_minutes_and_are_jittered() -> None:
    task = Task("full", DAY_S, 60, lambda _cancel: None, lambda: None)
    longest = [retry_pause_s(task, count, 1.0) for count in (1, 2, 3, 4, 5, 6, 7, 100_000)]
    assert longest == [15, 30, 60, 120, 240, 300, 300, 300]
    assert [retry_pause_s(task, count, 0.0) for count in (1, 100_000)] == [7.5, 150]
    assert retry_pause_s(task, 1, 1.0, is_overdue=True) == RETRY_MAX_S


def test_a_task_that_fails_is_tried_again_soon_and_then_less_often_until_it_succeeds() -> None:
    # The clock is far in the past while a run is to begin, and far ahead while a pause is to be looked at.
    reports = _Reports()
    past, future = NOW - timedelta(days=9999), NOW + timedelta(days=9999)
    clock = [past]
    fails = [True, True, True, False, True]

    def run(_cancel: threading.Event) -> None:
        clock[0] = future
        if fails.pop(0):
            raise RuntimeError("all regions are down")

    timetable = Timetable(
        [Task("full", DAY_S, 60, run, lambda: None)], now=lambda: clock[0], report=reports, jitter=lambda: 1.0
    )

    def has_seen(count: int) -> bool:
        return len(reports.seen) == count

    timetable.start()
    pauses: list[float] = []
    for count, event in enumerate(["failed", "failed", "failed", "done", "failed"], 1):
        with reports.changed:
            assert reports.changed.wait_for(partial(has_seen, count), WAIT_S)
        assert reports.seen[-1] == ("full", event)
        wait_until(lambda: timetable.states()[0].next_at is not None, "the next run is planned")
        next_at = timetable.states()[0].next_at
        assert next_at is not None
        pauses.append((next_at - future).total_seconds())
        clock[0] = past
        if fails:
            timetable.run_soon("full")
    assert timetable.stop(WAIT_S)
    assert pauses == [15, 30, 60, 0, 15]


def test_a_hung_task_is_reported_cancelled_and_starves_no_other() -> None:
    reports = _Reports()
    gave_up = threading.Event()

    def hang(cancel: threading.Event) -> None:
        assert cancel.wait(WAIT_S)
        gave_up.set()
        raise RuntimeError("cancelled")

    tasks = [
        Task("hung", DAY_S, 0.01, hang, lambda: None),
        Task("other", DAY_S, 60, lambda _cancel: None, lambda: None),
    ]
    timetable = Timetable(tasks, now=_now, report=reports, watch_every_s=0.1)
    timetable.start()
    reports.wait_for("other", "done")
    reports.wait_for("hung", "overdue")
    assert gave_up.wait(WAIT_S)
    reports.wait_for("hung", "failed")
    assert timetable.stop(WAIT_S)
    assert reports.seen.count(("hung", "overdue")) == 1
