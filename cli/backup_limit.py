"""``pitr backup limit``: how fast the daemon's backups are read, changed while one is taken."""

from __future__ import annotations

from typing import Any

import click

from cli.context import common_options, current
from cli.errors import UsageRefused
from cli.units import format_rate, parse_rate

TIMEOUT_S = 10.0


@click.command("limit")
@click.option("--rate", metavar="RATE", help="Read at this rate at most, such as 50MiB/s, or none.")
@click.option("--workers", type=click.IntRange(1), help="Threads that read, up to [backup] workers.")
@common_options
def limit_backups(rate: str | None, workers: int | None) -> None:
    """Change how fast the daemon's backups are read.

    At once, also for the one that is being taken, and until the daemon ends; the configuration says what
    it begins with. Without options it tells the limits.
    """
    from cli.control import ControlRequest, ask_own_daemon
    from pitr.errors import MalformedValue

    app = current()
    options: dict[str, Any] = {}
    if rate is not None:
        try:
            options["rate"] = parse_rate(rate)
        except MalformedValue as error:
            raise UsageRefused(f"--rate: {error.message}") from error
    if workers is not None:
        options["workers"] = workers
    done = ask_own_daemon(app.settings().daemon, ControlRequest("limit", options), timeout_s=TIMEOUT_S)
    found = done["rate_limit"]
    app.output.line(describe_limits(None if found is None else float(found), int(done["workers"])))
    app.output.finish(done)


def describe_limits(rate: float | None, workers: int) -> str:
    """Return the limits in a person's words."""
    return f"read with {format_rate(rate)}, by {workers} {'thread' if workers == 1 else 'threads'} at once"
