"""``pitr restore``: plan, show, confirm, execute, prove, promote."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, Unpack

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.events_cluster import mirror_option
from cli.output import format_bytes, format_seconds
from cli.reading import Source, open_source, source_of, source_options
from cli.target import local_zone, read_target, target_options

if TYPE_CHECKING:
    from cli.restore_again import Meant
    from cli.restore_replay import RestoreReplay
    from cli.wiring import Reader
    from pitr.datakeys import DataKeys
    from pitr.recovery import RecoveryTarget
    from pitr.restore_plan import RestorePlan
    from pitr.restore_request import Progress, RestoreRequest, RestoreResult

_WORKERS_MAX = 32
Action: TypeAlias = Literal["promote", "pause", "none"]


class Chosen(TypedDict):
    """The options that say how a restore is done, by their names on the command line."""

    start: bool
    tablespace_map: tuple[str, ...]
    wal_dir: Path | None
    delta: bool
    replace_cluster: int | None
    owner: str | None
    workers: int
    superuser: str | None
    certificate: Path | None
    no_verify: bool
    replay: bool
    handlers: Path | None
    accepted: tuple[str, ...]
    mirror: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is restored, where to, and what becomes of it."""

    target: RecoveryTarget
    meant: Meant
    into: Path
    action: Action


@click.command()
@click.option(
    "--to", "target", required=True, metavar="TARGET", help='A time with zone, latest, lsn:X/Y, "10m ago" …'
)
@click.option(
    "--into",
    required=True,
    type=click.Path(path_type=Path),
    help="Data directory: missing or empty, or with --delta a stopped cluster's.",
)
@click.option(
    "--delta", is_flag=True, help="Replace the stopped cluster there, and fetch only what differs from it."
)
@click.option(
    "--replace-cluster",
    type=click.IntRange(min=1),
    metavar="IDENTIFIER",
    help="With --delta: replace this cluster, though it is not the one that was backed up.",
)
@target_options
@click.option(
    "--action",
    type=click.Choice(["promote", "pause", "none"]),
    default="promote",
    show_default=True,
    help="At the target: open the cluster, leave it paused, or only prepare the files.",
)
@click.option("--start", is_flag=True, help="Leave the promoted server running on its private socket.")
@source_options
@click.option(
    "--tablespace-map",
    multiple=True,
    metavar="OLD=NEW",
    help="Put a tablespace (oid, name, path) elsewhere; may be repeated.",
)
@click.option(
    "--wal-dir",
    type=click.Path(path_type=Path),
    help="Make pg_wal a link to this directory: missing or empty, an absolute path.",
)
@click.option(
    "--owner", metavar="USER", help="Who owns the files and runs PostgreSQL, when this runs as root."
)
@click.option(
    "--workers", type=click.IntRange(1, _WORKERS_MAX), default=4, show_default=True, help="Parallel fetches."
)
@click.option(
    "--superuser", metavar="NAME", help="The restored cluster's superuser (default: as the backup says)."
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what was replayed, and that nothing lacked, here; default: beside --into.",
)
@click.option("--no-verify", is_flag=True, help="Leave out pg_verifybackup before the first start.")
@click.option(
    "--replay",
    is_flag=True,
    help="With --start: replay from Kafka what the restore takes back, and reconcile; docs/events.md.",
)
@click.option(
    "--handlers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --replay: what is done with each event (default: [events.replay] handlers_file).",
)
@click.option(
    "--accept-gap",
    "accepted",
    multiple=True,
    metavar="TOPIC[N]",
    help="With --replay: go on without events that are gone; may be repeated.",
)
@mirror_option
@click.option("--dry-run", is_flag=True, help="Show the plan, check the target directory, write nothing.")
@common_options
def restore(
    target: str,
    into: Path,
    exclusive: bool,
    timeline: str,
    backup_id: str | None,
    damaged: tuple[str, ...],
    action: Action,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
    dry_run: bool,
    **chosen: Unpack[Chosen],
) -> None:
    """Restore the cluster to a moment.

    It goes into a new data directory. Needs the regions and an identity, nothing else: no database host, no
    catalogue, and with --from no configuration. The plan is shown first; nothing that exists is written
    over; the cluster is opened only if replay ended exactly where the plan says.

    With --delta it takes the place of a stopped cluster. What is right there is copied and not fetched: by
    content, and proved by the digests in the signed manifest, so that nothing which rot or an attacker left
    is kept. The old cluster needs its room until the restore has succeeded; then it is removed, with the WAL
    in it that was never archived.

    With --replay events that the restore takes back are replayed before anybody may use the cluster; the
    same command goes on where an earlier one was ended.
    """
    from cli.restore_again import Meant
    from cli.restore_choices import check_choices

    app = current()
    check_choices(chosen, action, source_identity)
    parsed = read_target(app, target, is_inclusive=not exclusive, timeline=timeline)
    meant = Meant(target, exclusive, timeline, backup_id, damaged)
    source = source_of(source_urls, source_identity, source_region, source_archive)
    replay = None
    if chosen["replay"]:
        from cli.restore_replay import RestoreReplay

        replay = RestoreReplay.of(app, target, into, chosen, source)
    _restore(app, source, Wanted(parsed, meant, into, action), chosen, replay, is_dry_run=dry_run)


def _restore(
    app: App,
    source: Source,
    wanted: Wanted,
    chosen: Chosen,
    replay: RestoreReplay | None,
    *,
    is_dry_run: bool,
) -> None:
    """Plan, show, confirm and carry out."""
    from cli.copy_faults import telling_faults
    from cli.plan_sources import show_forecast, show_regions
    from cli.plan_view import plan_fields, show_plan
    from cli.restore_again import asked_of, make_plan_again
    from cli.restore_choices import show_delta

    begun = time.monotonic()
    into, zone = wanted.into, app.time_zone() or local_zone()
    fields: dict[str, object] = {}
    app.partial_result = fields
    result = None
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        planned = make_plan_again(
            reader, source, wanted.target, app.output, wanted.meant, into, replaces=chosen["delta"]
        )
        plan = planned.plan
        plan_s = time.monotonic() - begun
        show_plan(app.output, plan, zone, into=str(into))
        fields |= {"plan": plan_fields(plan, zone), "into": str(into), "is_dry_run": is_dry_run}
        fields["regions"] = show_regions(app.output, reader.standings, planned.silent)
        # It reads reports; where nobody looks at it before the restore begins, it only costs time.
        if is_dry_run or not app.is_yes:
            fields["forecast"] = show_forecast(app, reader, source, plan, planned.backups)
        if replay is not None and replay.is_restored() and not is_dry_run:
            fields |= replay.go_on(_request(app, reader, plan, into, wanted.action, chosen), reader)
            app.output.finish(fields)
            return
        asked = asked_of(app, wanted.meant, into, source, wanted.action, chosen)
        request = replace(checked_request(app, reader, plan, into, wanted.action, chosen), asked=asked)
        if chosen["delta"]:
            fields["delta"] = show_delta(app.output, reader, plan, into, chosen)
        if not is_dry_run:
            _confirm(app, request, chosen["owner"], replaces=fields.get("delta") is not None)
            if replay is not None:
                replay.begin()
                request = replay.joined(request, reader)
            result = execute(app, reader, request)
            if replay is not None:
                fields["replay"] = replay.finish(result, reader)
    if result is None:
        app.output.finish(fields)
    else:
        _tell(app, result, plan_s, fields)


def _confirm(app: App, request: RestoreRequest, owner: str | None, *, replaces: bool) -> None:
    from cli.restore_owner import warn_of_owner

    if owner is None:
        warn_of_owner(app.output, request.user)
    if app.is_yes:
        return
    if not app.output.is_interactive():
        raise UsageRefused(
            "a restore must be confirmed",
            detail="nobody can be asked here: this is no terminal",
            hint="add --yes, or --dry-run to see the plan only",
        )
    into = request.target
    question = f"Replace the cluster in {into}?" if replaces else f"Restore into {into}?"
    click.confirm(question, abort=True, err=True)


def checked_request(
    app: App,
    reader: Reader,
    plan: RestorePlan,
    into: Path,
    action: Action,
    chosen: Chosen,
) -> RestoreRequest:
    """Return the request after every check that needs no writing: a dry run refuses what a real one would."""
    from pitr.restore import check_restore

    request = _request(app, reader, plan, into, action, chosen)
    check_restore(request, reader.repository, data_keys_of(reader))
    return request


def data_keys_of(reader: Reader) -> DataKeys:
    """Return what opens the repository's data."""
    from pitr.datakeys import DataKeys

    assert reader.identity is not None, "the command asks for an identity first"
    return DataKeys(reader.repository, reader.identity.identity)


def execute(app: App, reader: Reader, request: RestoreRequest) -> RestoreResult:
    """Carry a restore out, and show how far it is."""
    from cli.progress import ProgressReport
    from cli.restore_choices import cache_dir
    from pitr.postgres.server_user import readable_installation
    from pitr.restore import restore as carry_out

    if request.installation is not None:
        installation = readable_installation(request.installation, request.user, cache_dir)
        request = replace(request, installation=installation)
    keys = data_keys_of(reader)
    with ProgressReport(app.output) as report:

        def show(progress: Progress) -> None:
            report.update(*progress_words(progress))

        return carry_out(request, reader.repository, keys, on_progress=show)


def _request(
    app: App,
    reader: Reader,
    plan: RestorePlan,
    into: Path,
    action: Action,
    chosen: Chosen,
) -> RestoreRequest:
    from cli.config import find_config_or_none
    from cli.own_command import own_command
    from cli.restore_choices import read_mapping
    from cli.restore_owner import choose_owner
    from cli.wiring import preferred_bin_dir
    from pitr.postgres.installation import find_pg
    from pitr.restore_request import RestoreRequest
    from pitr.wal_plan_file import RegionAddress

    has_config = app.config_path is not None or find_config_or_none(None) is not None
    preferred = preferred_bin_dir(app.settings() if has_config else None)
    fetch_command = (*own_command(), "wal", "fetch")
    user = choose_owner(chosen["owner"], fetch_command)
    installation = None
    if action != "none" or not chosen["no_verify"]:
        installation = find_pg(plan.backup.server_version // 10_000, preferred=preferred)
    return RestoreRequest(
        plan=plan,
        target=into.absolute(),
        action=action,
        installation=installation,
        fetch_command=fetch_command,
        regions=tuple(RegionAddress(region.name, region.url) for region in reader.regions),
        identity_file=reader.identity_path.absolute() if reader.identity_path is not None else None,
        tablespace_mapping=read_mapping(chosen["tablespace_map"]),
        user=user,
        superuser=chosen["superuser"],
        certificate=None if chosen["certificate"] is None else chosen["certificate"].absolute(),
        verify_files=not chosen["no_verify"],
        keep_running=chosen["start"],
        workers=chosen["workers"],
        is_delta=chosen["delta"],
        replaced_cluster=chosen["replace_cluster"],
        wal_dir=chosen["wal_dir"],
    )


def progress_words(progress: Progress) -> tuple[str, int, int | None]:
    """Return what a restore does, how much of it is done, and of how much."""
    from pitr.restore_files import FileProgress

    if isinstance(progress, FileProgress):
        return "restoring files", progress.written_bytes, progress.total_bytes
    return "replaying WAL", progress.fetched_bytes, None


def _tell(app: App, result: RestoreResult, plan_s: float, fields: dict[str, object]) -> None:
    from pitr.recovery import instant_text

    output = app.output
    output.line()
    if result.replay_end is not None:
        output.line(f"restored  replay ended at {result.replay_end}, as planned")
    else:
        output.line("restored  the files; recovery has not run")
    if result.last_xact_at is not None:
        output.line(f"          last transaction ended at {instant_text(result.last_xact_at)}")
    output.line(
        f"          {format_bytes(result.size_bytes)} in {result.files} files, timeline {result.timeline}"
    )
    if result.kept_bytes:
        kept, fetched = format_bytes(result.kept_bytes), format_bytes(result.fetched_bytes)
        output.line(f"          {kept} of it kept from the old directory, {fetched} fetched")
    timings = {"plan": plan_s, **{timing.step: timing.seconds for timing in result.timings}}
    for step, seconds in timings.items():
        output.line(f"{step.ljust(9)} {format_seconds(seconds)}")
    output.line(f"{'total'.ljust(9)} {format_seconds(sum(timings.values()))}")
    if result.certificate is not None:
        output.line(f"certified {result.certificate}")
    if result.dsn is not None:
        output.line(f"running   {result.dsn}")
    for step in result.next_steps:
        output.line(f"next: {step}")
    output.finish(
        {
            **fields,
            "backup": result.backup,
            "action": result.action,
            "replay_end": str(result.replay_end) if result.replay_end is not None else None,
            "last_transaction_at": instant_text(result.last_xact_at) if result.last_xact_at else None,
            "timeline": str(result.timeline),
            "files": result.files,
            "size_bytes": result.size_bytes,
            "fetched_bytes": result.fetched_bytes,
            "kept_bytes": result.kept_bytes,
            "wal_bytes": result.wal_bytes,
            "certificate": str(result.certificate) if result.certificate is not None else None,
            "has_paused": result.has_paused,
            "seconds": timings,
            "recovery_time_s": sum(timings.values()),
            "dsn": result.dsn,
            "next": list(result.next_steps),
        }
    )
