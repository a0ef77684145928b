"""A base backup without a daemon: this process streams WAL for as long as the backup takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cli.context import App
from cli.daemon_core import Daemon
from cli.lagging import lagging_regions
from cli.lock import RunLock
from cli.log import configure_log
from cli.settings import Settings
from pitr.backup_choice import BackupKind
from pitr.errors import BackupFailed

if TYPE_CHECKING:
    from pitr.backup_tally import BackupProgress

READY_S = 60.0
END_S = 60.0


def back_up_alone(
    app: App, label: str, kind: BackupKind, show: Callable[[Mapping[str, Any]], None]
) -> Mapping[str, Any]:
    """Run a daemon's parts in this process, take one backup, and end them.  Raises AlreadyRunning."""
    from cli.daemon_verbs import backup_result, progress_fields

    settings = for_one_backup(app.settings())
    log = configure_log(form=app.log_format, verbosity=app.verbosity, is_coloured=False)
    settings.daemon.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with RunLock(settings.daemon.lock_path):
        daemon = Daemon(settings, log)
        run = _Run(daemon)
        run.start()
        try:
            run.wait_ready(READY_S)

            def look(seen: BackupProgress | None) -> None:
                show(progress_fields(seen))

            result = backup_result(daemon.back_up(label, kind, look), lagging_regions(daemon.store))
        finally:
            daemon.ask_to_stop("the end of the backup")
            run.join(END_S)
        if run.failure is not None:
            raise run.failure
        return result


def for_one_backup(settings: Settings) -> Settings:
    """Return the settings of a daemon that does nothing else by itself: what it began would be cut off."""
    return replace(
        settings,
        backup=replace(settings.backup, full_every_s=None, incr_every_s=None),
        daemon=replace(settings.daemon, metrics_port=None),
        verify=None,
        redis=(),
    )


class _Run:
    """The daemon's main loop in a thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="standalone", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> None:
        """Return once everything runs.  Raises what went wrong instead."""
        if not self._ready.wait(timeout_s):
            waiting = self._daemon.beginning
            raise BackupFailed(
                f"the server or the regions cannot be reached in {timeout_s:.0f} s",
                detail=None if waiting is None else waiting.not_ready().detail,
                hint="pitr doctor",
            )
        if self.failure is not None:
            raise self.failure

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._daemon.run(on_ready=self._ready.set, on_stopping=lambda: None)
        except BaseException as error:  # noqa: BLE001 — the top of a thread: the command fails with it
            self.failure = error
        finally:
            self._ready.set()
