"""The daemon's outlook: how long recovery to the latest moment would take, and what keeps that bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cli.forecast import forecast_fields, learn_from
from cli.looking import look_and_go_on
from pitr.errors import AlreadyRunning, PitrError
from storage.store import StoreError
from verifiers.rto_model import RtoModel, Work
from verifiers.rto_objective import judge_objective

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from cli.backup_runner import BackupRunner
    from pitr.wal.lsn import LSN
    from storage.store import ObjectStore

LOOK_EVERY_S: Final = 30.0
# A new report comes once a week, and reading them costs requests.
LEARN_EVERY_S: Final = 3600.0
_STOP_S: Final = 5.0
_LABEL_CHARS_MAX: Final = 200


class RecoveryOutlook:
    """A thread that looks every LOOK_EVERY_S.

    ``show`` is given each forecast; ``durable`` tells where the archive ends; ``begin`` starts what
    ``backups`` were asked for.  ``objective_s`` None: no backup is taken earlier.
    """

    def __init__(
        self,
        store: ObjectStore,
        system_identifier: int,
        public_key: Path | None,
        objective_s: float | None,
        *,
        backups: BackupRunner,
        log: FilteringBoundLogger,
        show: Callable[[dict[str, object] | None], None],
        durable: Callable[[], LSN | None],
        begin: Callable[[], object],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._system_identifier = system_identifier
        self._public_key = public_key
        self._objective_s = objective_s
        self._backups = backups
        self._log = log
        self._show = show
        self._durable = durable
        self._begin = begin
        self._now = now
        self._model: RtoModel | None = None
        self._learnt_at: float | None = None
        self._said: str | None = None
        self._asked_at: datetime | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look_until_stopped, name="outlook", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon; a look that hangs in a call is left behind."""
        self._stopping.set()
        self._thread.join(_STOP_S)

    def look(self) -> None:
        """Look once: forecast, and take an incremental backup if that keeps the objective."""
        last, durable = self._backups.last, self._durable()
        if last is None or durable is None:
            return
        if self._learnt_at is None or time.monotonic() - self._learnt_at > LEARN_EVERY_S:
            self._learn()
        work = Work(last.size_bytes, last.files, max(0, durable - last.wal_start))
        forecast = None if self._model is None else self._model.forecast(work)
        self._show(forecast_fields(forecast, work))
        objective_s = self._objective_s
        if objective_s is None:
            return
        now = self._now()
        # One that failed is not asked for again at once, either.
        begun_at = last.started_at if self._asked_at is None else max(last.started_at, self._asked_at)
        verdict = judge_objective(self._model, work, objective_s, last_backup_at=begun_at, now=now)
        if verdict.takes_backup and verdict.reason is not None:
            self._asked_at = now
            self._take(verdict.reason)
        elif verdict.reason != self._said:
            self._said = verdict.reason
            if verdict.reason is not None:
                self._log.warning("the recovery time objective is not held", reason=verdict.reason)

    def _take(self, reason: str) -> None:
        try:
            self._backups.ask_for(f"earlier: {reason}"[:_LABEL_CHARS_MAX], "incr")
        except AlreadyRunning:
            return
        self._log.info("an incremental backup is taken earlier", reason=reason)
        self._begin()

    def _learn(self) -> None:
        self._learnt_at = time.monotonic()
        last = self._backups.last
        try:
            known = () if last is None else (last,)
            self._model = learn_from(self._store, self._public_key, self._system_identifier, known)
        except (PitrError, StoreError) as error:
            self._log.info("no recovery time can be forecast", reason=str(error))

    def _look_until_stopped(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            look_and_go_on("the forecast", self.look, self._log.error)
