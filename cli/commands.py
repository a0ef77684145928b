"""The table of commands, and the options that stand before them."""

from __future__ import annotations

from importlib import metadata

import click

from cli.context import App, common_options
from cli.lazy import LazyCommand, LazyGroup

COMMANDS: dict[str, LazyCommand] = {
    "demo": LazyCommand("cli.demo", "demo", "Show the whole way on a throw-away cluster, in a minute."),
    "init": LazyCommand("cli.init", "init", "Make a repository, its keys and a configuration."),
    "doctor": LazyCommand("cli.doctor", "doctor", "Check server, regions, keys, clock and host."),
    "daemon": LazyCommand("cli.daemon", "daemon", "Stream WAL, keep the timetable, serve metrics."),
    "adopt": LazyCommand("cli.adopt", "adopt", "Say what it was where the server left the archive."),
    "watchdog": LazyCommand("cli.watchdog", "watchdog", "Release commits that wait for a dead daemon."),
    "backup": LazyCommand("cli.backup", "backup", "Take a base backup now."),
    "status": LazyCommand("cli.status", "status", "Tell what is safe, and how fresh it is."),
    "repair": LazyCommand("cli.repair", "repair", "Compare the regions, and make missing copies again."),
    "backups": LazyCommand("cli.backups", "backups", "List and show base backups."),
    "timeline": LazyCommand(
        "cli.timeline", "timeline", "Map what can be restored, from where, and why the rest cannot."
    ),
    "plan": LazyCommand("cli.plan", "plan", "Say how a target would be restored, and change nothing."),
    "find": LazyCommand(
        "cli.find", "find", "Find the last moment before something went wrong, to the transaction."
    ),
    "restore": LazyCommand("cli.restore", "restore", "Restore the cluster to a moment."),
    "patroni-bootstrap": LazyCommand(
        "cli.patroni_hooks", "patroni_bootstrap", "Restore a cluster, as Patroni's bootstrap method."
    ),
    "patroni-replica": LazyCommand(
        "cli.patroni_hooks", "patroni_replica", "Seed a replica, as Patroni's method to create one."
    ),
    "verify": LazyCommand(
        "cli.verify", "verify", "Prove that the cluster can be restored, and sign the proof."
    ),
    "drill": LazyCommand(
        "cli.drill", "drill", "Rehearse recovery: start a drill, list drills and findings, show one."
    ),
    "fingerprint": LazyCommand(
        "cli.fingerprint", "fingerprint", "Take the digests of all tables on a standby, at an exact LSN."
    ),
    "verifier": LazyCommand("cli.verifier", "verifier", "The verifier's own key."),
    "report": LazyCommand(
        "cli.report", "report", "Reports of verified restores: list, show, export, certify."
    ),
    "expire": LazyCommand("cli.expire", "expire", "Drop what the retention window no longer needs."),
    "log": LazyCommand(
        "cli.event_list", "log", "Show the signed events: what changed the archive's promises."
    ),
    "events": LazyCommand(
        "cli.events",
        "events",
        "Kafka beside the database: which offsets belong to a moment, and what to replay after a restore.",
    ),
    "wal": LazyCommand(
        "cli.wal", "wal", "List archived WAL, fetch it for PostgreSQL, or set up archive_command."
    ),
    "catalogue": LazyCommand("cli.catalogue", "catalogue", "Rebuild or check the catalogue."),
}


def _show_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    try:
        click.echo(f"pitr {metadata.version('pitr')}")
    except metadata.PackageNotFoundError:
        click.echo("pitr (from a checkout that is not installed)")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    lazy_commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PITR"},
    invoke_without_command=False,
    no_args_is_help=True,
)
@common_options
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colour of what people read.",
)
@click.option(
    "--progress", type=click.Choice(["auto", "plain", "none"]), default="auto", help="How progress is shown."
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Form of the log on standard error.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def pitr(ctx: click.Context, color: str, progress: str, log_format: str) -> None:
    """Back up PostgreSQL to several regions, and restore it to any moment."""
    app = ctx.ensure_object(App)
    app.output.color = color
    app.output.progress = progress
    app.log_format = log_format
    app.output.command = ctx.invoked_subcommand or ""
