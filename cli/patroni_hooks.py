"""``pitr patroni-bootstrap`` and ``pitr patroni-replica``: what Patroni runs to make a data directory.

Patroni appends ``--scope=… --datadir=…`` and each key of the method's section as ``--key=value``, so both
take options that they do not know.  Any exit code but 0 means "failed": a bootstrap ends there, and for a
replica the next of ``create_replica_methods`` is tried.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.reading import open_source, source_of, source_options
from cli.restore import Chosen, checked_request, data_keys_of, execute, restore
from cli.target import read_target, target_options

if TYPE_CHECKING:
    from cli.wiring import Reader
    from pitr.restore_plan import RestorePlan

_ANY_OPTION: Final = {"ignore_unknown_options": True, "allow_extra_args": True}
_WORKERS_MAX: Final = 32


def _patroni_options(command: Any) -> Any:
    """Give a command what Patroni always passes, and how much may be fetched at once."""
    options = [
        click.option("--scope", metavar="NAME", help="The cluster's name; Patroni passes it."),
        click.option(
            "--datadir",
            required=True,
            type=click.Path(path_type=Path),
            help="The data directory to make; Patroni passes it.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1, _WORKERS_MAX),
            default=4,
            show_default=True,
            help="Parallel fetches.",
        ),
        click.option(
            "--superuser",
            metavar="NAME",
            help="The restored cluster's superuser (default: as the backup says).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("patroni-bootstrap", context_settings=_ANY_OPTION)
@_patroni_options
@click.option(
    "--to", "target", default="latest", show_default=True, metavar="TARGET", help="As in pitr restore."
)
@target_options
@source_options
@common_options
def patroni_bootstrap(
    scope: str | None,
    datadir: Path,
    workers: int,
    superuser: str | None,
    target: str,
    **more: Any,
) -> None:
    """Restore a cluster, as Patroni's bootstrap method.

    It restores the files, recovers to the target, asserts that replay ended exactly there, and promotes, all
    in a private instance; Patroni then starts a cluster that was shut down cleanly, so its recovery_conf
    stays empty. Needs an identity. The cluster has its old system identifier: before it is archived, run
    pitr adopt --as restore (or pitr init --identity) on the host that archives it. Options that are not
    known are Patroni's, and are left alone.
    """
    app, ctx = current(), click.get_current_context()
    _note_unknown(app, ctx, scope)
    # Nobody is there to be asked: Patroni runs this.
    app.is_yes = True
    ctx.invoke(
        restore,
        target=target,
        into=datadir,
        action="promote",
        dry_run=False,
        **more,
        **_chosen(workers=workers, superuser=superuser, is_delta=False),
    )


@click.command("patroni-replica", context_settings=_ANY_OPTION)
@_patroni_options
@click.option("--keep_data", "keeps_data", type=click.BOOL, default=False, help="What is there may be used.")
@click.option("--no_leader", "no_leader", type=click.BOOL, default=False, help="It may run without a leader.")
@click.option("--role", metavar="ROLE", help="What the member is to be; Patroni passes it.")
@click.option("--connstring", metavar="DSN", help="The leader; Patroni passes it where there is one.")
@source_options
@common_options
def patroni_replica(
    scope: str | None,
    datadir: Path,
    workers: int,
    superuser: str | None,
    keeps_data: bool,
    no_leader: bool,  # noqa: ARG001 - nothing depends on it
    role: str | None,  # noqa: ARG001 - a standby is made, whatever it is called
    connstring: str | None,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Seed a replica, as Patroni's method to create one.

    The newest backup is restored with all archived WAL after it in pg_wal; the replica starts as a standby,
    replays that, and streams the rest from the leader, which is spared a base backup. With
    keep_data in the method's section what is in the data directory is used where it is right, and only the
    rest is fetched. Where the archive's end is not in the leader's past nothing is made, and Patroni tries
    its next method.
    """
    from cli.copy_faults import telling_faults
    from cli.planning import make_plan

    app = current()
    _note_unknown(app, click.get_current_context(), scope)
    app.is_yes = True
    if source_identity is None:
        raise UsageRefused("a restore needs the reader's identity", hint="--identity FILE")
    source = source_of(source_urls, source_identity, source_region, source_archive)
    fields: dict[str, object] = {"into": str(datadir)}
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        target = read_target(app, "latest", is_inclusive=True, timeline="latest")
        plan = make_plan(reader, source, target, app.output, backup_id=None, without=())
        if connstring is not None:
            _check_leader(connstring, plan, reader)
        has_cluster = keeps_data and (datadir / "PG_VERSION").exists()
        chosen = _chosen(workers=workers, superuser=superuser, is_delta=has_cluster)
        request = checked_request(app, reader, plan, datadir, "none", chosen)
        result = execute(app, reader, request)
        fields |= _seed(app, reader, datadir, request.user, workers)
    kept, fetched = result.kept_bytes, result.fetched_bytes
    app.output.finish({**fields, "backup": result.backup, "kept_bytes": kept, "fetched_bytes": fetched})


def _seed(app: App, reader: Reader, datadir: Path, user: Any, workers: int) -> dict[str, object]:
    """Make a standby of what was restored."""
    from pitr.replica import seed_replica
    from pitr.restore_journal import WorkDirectory

    keys, work = data_keys_of(reader), WorkDirectory.of(datadir.absolute())
    seeded = seed_replica(
        datadir.absolute(),
        work.plan_file,
        lambda key: reader.repository.read_wal(key, keys),
        user=user,
        workers=workers,
    )
    work.remove()
    app.output.line(f"seeded    a standby with {seeded.segments} segments of WAL, up to {seeded.end}")
    return {"wal_segments": seeded.segments, "wal_bytes": seeded.wal_bytes, "wal_end": str(seeded.end)}


def _check_leader(connstring: str, plan: RestorePlan, reader: Reader) -> None:
    """Refuse to seed what could not follow the leader.  Raises UsageRefused, ArchiveDiverged."""
    from cli.server_past import read_server
    from pitr.errors import ArchiveDiverged
    from pitr.wal.follow import ReceivedEnd, find_fork
    from pitr.wal.timeline import TimelineHistory

    leader = read_server(connstring)
    if leader.identity.system_identifier != plan.archive.system_identifier:
        raise UsageRefused(
            f"the leader is another cluster: its system identifier is {leader.identity.system_identifier}",
            detail=f"the archive is {plan.archive}",
            hint="say which archive with --archive",
        )
    own = TimelineHistory(plan.timeline)
    if plan.timeline.number > 1:
        own = reader.repository.get_history(plan.archive, plan.timeline).history()
    fork = find_fork(ReceivedEnd(plan.timeline, plan.wal_end), own, leader.history)
    if fork is not None:
        raise ArchiveDiverged(
            "a replica that is made of the archive could not follow the leader",
            detail=str(fork),
            hint="wait until the daemon follows the new leader, or let Patroni take its next method",
        )


def _chosen(*, workers: int, superuser: str | None, is_delta: bool) -> Chosen:
    return Chosen(
        start=False,
        tablespace_map=(),
        wal_dir=None,
        delta=is_delta,
        replace_cluster=None,
        owner=None,
        workers=workers,
        superuser=superuser,
        certificate=None,
        no_verify=False,
        replay=False,
        handlers=None,
        accepted=(),
        mirror=False,
    )


def _note_unknown(app: App, ctx: click.Context, scope: str | None) -> None:
    """Say what is left alone: a misspelt option of ours would otherwise be without effect unseen."""
    if ctx.args:
        app.output.note(f"{scope or 'patroni'}: left alone: {' '.join(ctx.args)}")
