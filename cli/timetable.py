"""The timetable: runs tasks when they are due, each alone, each with a deadline.

APScheduler keeps the time; here is decided *when* a task is due.  A task that was missed
while the daemon or the machine was down is caught up once, however often it was missed; a
failed one is tried again after a short pause that grows.  Every task has a thread of its own, so a
hung one is reported and starves no other.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

WATCH_EVERY_S = 5.0
# An outage of the regions is mostly over in a minute, and until the first backup is taken nothing can be
# restored; one that lasts must not be hammered.
RETRY_FIRST_S = 15.0
RETRY_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Task:
    """Something to be done again and again, or with ``every_s`` None only when asked.

    ``run`` is given an event that is set when it must give up; it raises on failure.
    ``last_success_at`` tells when it last began a run that succeeded, also before this process.
    """

    name: str
    every_s: float | None
    deadline_s: float
    run: Callable[[threading.Event], None]
    last_success_at: Callable[[], datetime | None]
    retry_first_s: float = RETRY_FIRST_S
    retry_max_s: float = RETRY_MAX_S


@dataclass(frozen=True, slots=True)
class TaskState:
    """What a status shows of a task."""

    name: str
    is_running: bool
    is_overdue: bool
    started_at: datetime | None
    next_at: datetime | None
    last_error: str | None
    runs: int
    failures: int


@dataclass(slots=True)
class _Run:
    task: Task
    cancel: threading.Event = field(default_factory=threading.Event)
    is_running: bool = False
    is_overdue: bool = False
    started_at: datetime | None = None
    last_error: str | None = None
    runs: int = 0
    failures: int = 0
    failed_in_a_row: int = 0


# Told of every end of a run (error None: success) and of a run that is past its deadline.
TaskReport = Callable[[str, str, str | None], None]


def due_at(last_success_at: datetime | None, every_s: float, now: datetime) -> datetime:
    """Return when a task is to run: at once if it never ran or is late, and then only once."""
    if last_success_at is None:
        return now
    return max(now, last_success_at + timedelta(seconds=every_s))


def retry_pause_s(task: Task, failed_in_a_row: int, jitter: float, *, is_overdue: bool = False) -> float:
    """Return how long to wait after a failure: doubled with each in a row, at least half of it jittered away.

    A run that was cancelled for taking too long has cost hours of reading, so it gets the longest pause.
    ``jitter`` is from 0 to 1.
    """
    # The exponent is bounded, for a float overflows after a thousand failures.
    doubled = task.retry_first_s * 2.0 ** min(max(0, failed_in_a_row - 1), 32)
    longest = task.retry_max_s if is_overdue else min(doubled, task.retry_max_s)
    return longest * (0.5 + jitter / 2)


class Timetable:
    """Runs tasks until stopped.  ``now`` gives aware times in UTC, ``jitter`` numbers from 0 to 1."""

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        now: Callable[[], datetime],
        report: TaskReport,
        watch_every_s: float = WATCH_EVERY_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._now = now
        self._jitter = jitter
        self._report = report
        self._lock = threading.Lock()
        self._runs = {task.name: _Run(task) for task in tasks}
        # APScheduler drops a one-off job that comes due in the instant in which its last run is still being
        # counted, hence two "instances"; the executor's single thread keeps runs of a task from overlapping.
        executors = {task.name: ThreadPoolExecutor(1) for task in tasks}
        self._scheduler = BackgroundScheduler(
            executors={**executors, "default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 2, "misfire_grace_time": None},
            timezone="UTC",
        )
        self._watch_every_s = watch_every_s
        self._stopping = False

    def start(self) -> None:
        """Begin: late tasks run at once, and so does what ``run_soon`` was asked for before."""
        for run in self._runs.values():
            if run.task.every_s is not None:
                due = due_at(run.task.last_success_at(), run.task.every_s, self._now())
                self._schedule(run, due, replaces=False)
        self._scheduler.add_job(self._watch, "interval", seconds=self._watch_every_s, id="watch")
        self._scheduler.start()

    def stop(self, timeout_s: float) -> bool:
        """Cancel what runs and wait for it; tell whether everything ended in time."""
        with self._lock:
            self._stopping = True
            for run in self._runs.values():
                run.cancel.set()
        if self._scheduler.running:
            waiter = threading.Thread(target=self._scheduler.shutdown, name="timetable-stop", daemon=True)
            waiter.start()
            waiter.join(timeout_s)
            return not waiter.is_alive()
        return True

    def run_soon(self, name: str) -> bool:
        """Bring a task forward to now; False if it is running already."""
        with self._lock:
            run = self._runs[name]
            if run.is_running:
                return False
        self._schedule(run, self._now())
        return True

    def states(self) -> tuple[TaskState, ...]:
        """Return how the tasks stand."""
        with self._lock:
            runs = list(self._runs.values())
        return tuple(self._state(run) for run in runs)

    def _state(self, run: _Run) -> TaskState:
        job: Any = self._scheduler.get_job(run.task.name)
        return TaskState(
            run.task.name,
            run.is_running,
            run.is_overdue,
            run.started_at,
            getattr(job, "next_run_time", None),
            run.last_error,
            run.runs,
            run.failures,
        )

    def _schedule(self, run: _Run, at: datetime, *, replaces: bool = True) -> None:
        with self._lock:
            if self._stopping:
                return
            # Somebody waits for a run that was asked for; the timetable's own time may be a day later.
            if not replaces and self._scheduler.get_job(run.task.name) is not None:
                return
            self._scheduler.add_job(
                self._execute,
                "date",
                run_date=at,
                args=[run],
                id=run.task.name,
                executor=run.task.name,
                replace_existing=True,
            )

    def _execute(self, run: _Run) -> None:
        with self._lock:
            if self._stopping:
                return
            run.cancel.clear()
            run.is_running, run.is_overdue = True, False
            run.started_at = self._now()
            run.runs += 1
        error: str | None = None
        try:
            run.task.run(run.cancel)
        except Exception as failure:  # noqa: BLE001 — the top of a scheduled run: it is reported and tried again
            error = f"{type(failure).__name__}: {failure}"
        with self._lock:
            was_overdue = run.is_overdue
            run.is_running, run.is_overdue = False, False
            run.last_error = error
            run.failures += error is not None
            run.failed_in_a_row = 0 if error is None else run.failed_in_a_row + 1
        self._report(run.task.name, "failed" if error else "done", error)
        if error is not None:
            pause_s = retry_pause_s(run.task, run.failed_in_a_row, self._jitter(), is_overdue=was_overdue)
            self._schedule(run, self._now() + timedelta(seconds=pause_s))
        elif run.task.every_s is not None:
            self._schedule(run, due_at(run.started_at, run.task.every_s, self._now()))

    def _watch(self) -> None:
        """Cancel runs that are past their deadline, and report each of them once."""
        now = self._now()
        late: list[_Run] = []
        with self._lock:
            for run in self._runs.values():
                if not run.is_running or run.is_overdue or run.started_at is None:
                    continue
                if (now - run.started_at).total_seconds() > run.task.deadline_s:
                    run.is_overdue = True
                    run.cancel.set()
                    late.append(run)
        for run in late:
            self._report(run.task.name, "overdue", f"it runs for more than {run.task.deadline_s:.0f} s")
