"""``pitr report --from T1 --to T2``: the signed report of a period."""

from __future__ import annotations

import os
import re
import socket
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.reading import Command

if TYPE_CHECKING:
    from verifiers.audit_log import AuditLog
    from verifiers.period_values import Period, Wanted
    from verifiers.statement import Predicate

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def period_options(command: Command) -> Command:
    """Give a command the options that name a period and who signs its report."""
    options = [
        click.option(
            "--from", "begins", metavar="TIME", help="Where the period begins; a date: its first moment."
        ),
        click.option(
            "--to", "ends", metavar="TIME", help="Where it ends, itself left out; a date: that day too."
        ),
        click.option("--system", metavar="SYSTEM", help="Which cluster, if reports are of several."),
        click.option(
            "--verifier-key",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The verifier's signing key (default: verifier.key beside the configuration).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("period")
@period_options
@common_options
def period(begins: str | None, ends: str | None, system: str | None, verifier_key: Path | None) -> None:
    """Report a period: runs planned, actual and missed, figures, findings, backups, deletions, keys.

    From the verifier's log and what the host and the root signed. The report is signed, logged and put
    beside the others; pitr report export writes it. The same as pitr report --from TIME --to TIME.
    """
    report_period(current(), begins, ends, system, verifier_key)


def report_period(
    app: App, begins: str | None, ends: str | None, system: str | None, verifier_key: Path | None
) -> None:
    """Make the report and tell of it.  Raises UsageRefused, KeyMissing, StoreError."""
    from cli.report_log import open_log
    from cli.wiring import host_repository
    from pitr.pipeline.sign import Verifier
    from verifiers.period_series import issue_period
    from verifiers.run_ids import uuid7

    if begins is None or ends is None:
        raise UsageRefused(
            "a period needs --from and --to", hint="pitr report --from 2026-01-01 --to 2026-12-31"
        )
    now, settings = datetime.now(UTC), app.settings()
    with open_log(app, verifier_key) as log:
        wanted = _period(app, log, begins, ends, system)
        report = issue_period(
            log,
            host_repository(settings, log.store),
            Verifier.parse(settings.keys.root),
            wanted,
            _wanted(app),
            report_id=uuid7(now, os.urandom(10)),
            at=now,
        )
    _tell(app, report.predicate)
    app.output.finish(
        {
            "report_id": report.predicate["identity"]["report_id"],
            "report_sha256": report.payload_sha256,
            "predicate": report.predicate,
        }
    )


def _period(app: App, log: AuditLog, begins: str, ends: str, system: str | None) -> Period:
    from verifiers.period_values import Period

    start, end = read_moment(app, begins, is_end=False), read_moment(app, ends, is_end=True)
    if start >= end:
        raise UsageRefused(
            "the period ends before it begins", detail=f"from {start.isoformat()} to {end.isoformat()}"
        )
    named = {text for entry in log.entries() if (text := entry.text("system_identifier")) is not None}
    if system is not None and system not in named:
        raise UsageRefused(f"the log tells of no cluster {system}", hint=f"it tells of: {_listed(named)}")
    if system is None and len(named) != 1:
        raise UsageRefused(
            "the log tells of several clusters" if named else "nothing was verified yet",
            hint=f"name one with --system: {_listed(named)}" if named else "pitr verify",
        )
    return Period(start, end, int(system or next(iter(named))))


def _listed(named: set[str]) -> str:
    return ", ".join(sorted(named)) or "none"


def read_moment(app: App, text: str, *, is_end: bool) -> datetime:
    """Return a moment as it was typed; a date alone means its whole day.

    Raises UsageRefused, TargetRefused.
    """
    from cli.target import is_zone, local_zone, read_target

    if not _DATE.fullmatch(text):
        target = read_target(app, text, is_inclusive=True, timeline="latest")
        if target.instant is None:
            raise UsageRefused(f"not a time: {text!r}", hint='a date, or such as "2026-03-31 18:00 UTC"')
        return target.instant.astimezone(UTC)
    zone = app.time_zone() or local_zone()
    if not is_zone(zone):
        raise UsageRefused(f"there is no time zone {zone!r}", hint="name an IANA zone such as Europe/Berlin")
    try:
        day = date.fromisoformat(text) + timedelta(days=is_end)
    except (ValueError, OverflowError) as error:
        raise UsageRefused(f"there is no day {text}") from error
    return datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC)


def _wanted(app: App) -> Wanted:
    from cli.verify_facts import policy_of, product_version
    from verifiers.period_values import Wanted

    settings = app.settings()
    config = settings.verify_or_default
    policy = policy_of(config, settings)
    return Wanted(
        config.organisation,
        config.system or settings.cluster.name,
        policy.policy_id,
        policy.sha256,
        policy.every_ms,
        policy.rto_ms,
        policy.rpo_ms,
        f"pitr on {socket.gethostname()}",
        product_version(),
    )


def _tell(app: App, said: Predicate) -> None:
    from cli.output import format_seconds

    runs, result, identity = said["runs"], said["result"], said["identity"]
    line = app.output.line
    line(f"period report {identity['report_id']}: {result['overall']}")
    line(f"from {identity['period_start']} until before {identity['period_end']}")
    line(
        f"planned {runs['planned']}; reported {runs['reported']}: {runs['passed']} PASSED,"
        f" {runs['warned']} WARNED, {runs['failed']} FAILED"
    )
    line(f"missed {runs['missed']}, abandoned {runs['abandoned']}, unfinished {runs['unfinished']}")
    for words, group in (("recovery time", said["recovery_time"]), ("data loss", said["data_loss"])):
        if group["measured"]:
            names = ("min", "median", "p95", "max")
            texts = [f"{name} {format_seconds(group[f'{name}_ms'] / 1000)}" for name in names]
            line(f"{words}: {', '.join(texts)}; objective missed {group['objective_missed']} times")
    backups = said["backups"]
    line(
        f"backups: {backups['full']} full, {backups['incr']} incremental;"
        f" deletions: {len(said['deletions'])}; open findings: {result['open_findings']};"
        f" gaps: {len(said['gaps'])}"
    )
    picked = ", ".join(str(one["series_seq"]) for one in said["sample"]["picked"])
    line(f"a sample that nobody chose: reports {picked or 'none'}")
    for limit in result["limits"]:
        line(f"limit: {limit}")
