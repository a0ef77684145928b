"""``pitr watchdog``: the process that releases commits when the daemon cannot."""

from __future__ import annotations

import signal
import threading
import time
from datetime import UTC, datetime
from types import FrameType

import click

from cli.context import common_options, current


@click.command()
@common_options
def watchdog() -> None:
    """Release commits that wait for a dead daemon.

    Runs until it is stopped, beside the daemon and apart from it. It matters where synchronous_standby_names
    names the daemon: with [wal] protect = "primary" commits that waited for [wal] release_after are released,
    and wait again when the daemon has kept up for a while; with "data" they wait, and it is only said.

    One watchdog at a time works on a state directory (exit code 6) and on a server. The daemon that has the
    same state directory signs what it did; elsewhere it says that nobody does, until its journal is brought
    there.
    """
    from cli.daemon import notify
    from cli.lock import RunLock
    from cli.log import configure_log
    from cli.watchdog_run import Watchdog
    from cli.wiring import server_address
    from pitr.commit_release import ReleasePolicy
    from pitr.postgres.leader import LeaderAddress
    from pitr.postgres.sync_standby import standby_name
    from pitr.release_journal import ReleaseJournal

    app = current()
    settings = app.settings()
    log = configure_log(
        form=app.log_format, verbosity=app.verbosity, is_coloured=app.output.is_coloured(app.output.stderr)
    )
    settings.daemon.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    with RunLock(settings.daemon.watchdog_lock_path, whose="watchdog"):
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        wal = settings.wal
        if not settings.daemon.lock_path.exists():
            # It goes on all the same: commits that hang are worse than a release that is signed late.
            log.warning(
                "no daemon has worked on this state directory: nobody signs what is released from here",
                journal=str(settings.daemon.releases_path),
                next="use the daemon's state directory, or bring the journal there: docs/synchronous.md",
            )
        address = server_address(settings.cluster)
        if isinstance(address, LeaderAddress):
            # A session that ends is all that it would be woken for.
            address.start(lambda: None)
        log.info("watching", protect=str(wal.protection.protect), release_after_s=wal.release_after_s)
        notify(b"READY=1")
        Watchdog(
            address,
            standby_name(settings.cluster.dsn),
            ReleasePolicy(wal.protection.protect, wal.release_after_s),
            ReleaseJournal(settings.daemon.releases_path),
            log,
            now=lambda: datetime.now(UTC),
            monotonic=time.monotonic,
        ).run(stopping)
    app.output.finish({})
