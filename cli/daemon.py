"""``pitr daemon``: the process that runs beside a server, all the time."""

from __future__ import annotations

import gc
import os
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current

if TYPE_CHECKING:
    from cli.daemon_core import Daemon


@click.command()
@common_options
def daemon() -> None:
    """Stream WAL, keep the timetable, serve metrics.

    Runs until it is stopped, and takes base backups when they are due.

    SIGTERM and SIGINT send what has arrived, for [daemon] drain at most, and then say what was and was
    not durable. One daemon at a time works on a state directory (exit code 6).
    """
    from cli.daemon_core import Daemon
    from cli.lock import RunLock
    from cli.log import configure_log

    app = current()
    settings = app.settings()
    log = configure_log(
        form=app.log_format, verbosity=app.verbosity, is_coloured=app.output.is_coloured(app.output.stderr)
    )
    settings.daemon.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with RunLock(settings.daemon.lock_path):
        running = Daemon(settings, log)
        # What is there now stays to the end; looking through all of it again and again found nothing.
        gc.freeze()
        _on_signals(running)
        running.run(on_ready=lambda: notify(b"READY=1"), on_stopping=lambda: notify(b"STOPPING=1"))
        _tell(app, running)


def _on_signals(running: Daemon) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        running.ask_to_stop(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _tell(app: App, running: Daemon) -> None:
    drained = running.drained
    app.output.line("no WAL had been received" if drained is None else str(drained))
    app.output.finish(
        {
            "received_lsn": str(drained.received) if drained and drained.received else None,
            "durable_lsn": str(drained.durable) if drained and drained.durable else None,
            "timeline": str(drained.timeline) if drained and drained.timeline else None,
            "is_complete": drained is None or drained.is_complete,
        }
    )


def notify(message: bytes) -> None:
    """Tell systemd, if it started us (sd_notify(3), protocol of $NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.sendto(message, address)
        except OSError:
            # A service manager that is gone is no reason to stop archiving.
            return
