"""``pitr backup``: a base backup now, by the running daemon or by this process alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cli.backup_limit import limit_backups
from cli.context import App, common_options, current
from cli.errors import RegionsMissed, WaitInterrupted
from cli.output import format_bytes, format_seconds

if TYPE_CHECKING:
    from pitr.backup_choice import BackupKind

# Between two lines of progress the daemon waits for a checkpoint at most.
PROGRESS_TIMEOUT_S = 120.0


@click.group(invoke_without_command=True)
@click.option("--label", default="asked for", show_default=True, help="A word to find it by.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["full", "incr", "auto"]),
    default="auto",
    show_default=True,
    help="All, or what changed since the last one; auto: full when one is due, and with --standalone.",
)
@click.option("--standalone", is_flag=True, help="Without a daemon: stream WAL only for as long as it takes.")
@common_options
@click.pass_context
def backup(ctx: click.Context, label: str, kind: BackupKind, standalone: bool) -> None:
    """Take a base backup now.

    Full, or incremental: only what changed since the last one. The running daemon takes it, for a backup is
    good only with the WAL that is streamed meanwhile; it goes on if you interrupt this command.
    Exit code 3 if it is at quorum but some region lacks part of it yet.
    """
    from cli.progress import ProgressReport

    if ctx.invoked_subcommand is not None:
        return
    app = current()
    settings = app.settings()
    with ProgressReport(app.output) as report:

        def show(progress: Mapping[str, Any]) -> None:
            total = progress.get("total_bytes")
            paused = progress.get("paused")
            report.update(
                str(progress["step"]) + (f", paused: {paused}" if paused else ""),
                int(progress.get("bytes", 0)),
                int(total) if total is not None else None,
            )

        if standalone:
            from cli.standalone import back_up_alone

            done = back_up_alone(app, label, kind, show)
        else:
            from cli.control import ControlRequest, ask_own_daemon
            from pitr.errors import NotInitialised

            try:
                done = ask_own_daemon(
                    settings.daemon,
                    ControlRequest("backup", {"label": label, "type": kind}),
                    timeout_s=PROGRESS_TIMEOUT_S,
                    on_progress=show,
                )
            except NotInitialised as error:
                raise NotInitialised(
                    error.message,
                    detail=error.detail,
                    hint="start it with: pitr daemon; or take this one alone: pitr backup --standalone",
                ) from error
            except KeyboardInterrupt:
                raise WaitInterrupted(
                    "interrupted",
                    detail="only the wait: the daemon goes on with the backup",
                    hint="pitr status shows how far it is",
                ) from None
    _tell(app, done)


backup.add_command(limit_backups)


def _tell(app: App, done: Mapping[str, Any]) -> None:
    taken = done["backup"]
    lagging = list(done["lagging_regions"])
    for note in done["notes"]:
        app.output.warn(note)
    app.output.line(
        f"{taken['backup']}: {format_bytes(int(taken['size_bytes']))} in {taken['files']} files,"
        f" {format_bytes(int(taken['stored_bytes']))} stored, in {format_seconds(float(done['duration_s']))}"
    )
    app.output.line(f"restorable from {taken['stop_lsn']} on")
    for finding in taken["findings"]:
        where = finding["relation"] or finding["path"]
        app.output.warn(f"bad page: {where} {finding['fork']} block {finding['block']}: {finding['reason']}")
    if lagging:
        app.partial_result = dict(done)
        raise RegionsMissed(
            f"the backup is at quorum, but not yet in {', '.join(lagging)}",
            detail="what they lack is in the repair queue, and sent in the background",
            hint="pitr status shows what is waiting",
        )
    app.output.finish(done)
