"""``pitr redis``: what a restore makes of derived state, and snapshots of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.reading import choose_archive, open_source, source_of, source_options
from pitr.errors import DerivedInPart, KeyMissing, TargetRefused

if TYPE_CHECKING:
    from cli.config_redis import RedisSettings
    from pitr.derived.policy import Treatment
    from pitr.derived.snapshot_record import SnapshotRecord
    from pitr.derived.walk import SiteWalk

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def redis() -> None:
    """Redis beside the database: what a restore makes of it, and snapshots.

    After a restore Redis holds what the database no longer says, and it cannot be set back to a moment. So
    [[redis.namespace]] declares what becomes of the keys. It comes last: applications are stopped, the
    database is restored and events are replayed before.
    """


def _name_option(command: Command) -> Command:
    return click.option(
        "--name", "names", multiple=True, metavar="NAME", help="This [[redis]] alone; may be repeated."
    )(command)


def _walk_options(command: Command) -> Command:
    options = [
        click.option(
            "--after",
            type=click.Choice(["restore", "ransomware"]),
            default="restore",
            show_default=True,
            help="What the restore was for; after ransomware sessions go, whatever is declared.",
        ),
        click.option(
            "--keep",
            "kept",
            multiple=True,
            metavar="PREFIX",
            help="Keep this namespace all the same; may be repeated.",
        ),
        click.option("--at", "moment", metavar="TIME", help="The moment that the database was restored to."),
        _name_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@redis.command()
@_walk_options
@common_options
def plan(after: str, kept: tuple[str, ...], moment: str | None, names: tuple[str, ...]) -> None:
    """Count what would go, on every master, and change nothing.

    Exit code 3 if a master does not answer, or slots move: the figures are then not of the whole.
    """
    _run(current(), after, kept, moment, names, acts=False)


@redis.command()
@_walk_options
@common_options
def apply(after: str, kept: tuple[str, ...], moment: str | None, names: tuple[str, ...]) -> None:
    """Raise the epochs and remove what is declared, with --yes; without it, show the plan.

    May be repeated and killed at any moment: the same command goes on, and raises no epoch twice. Exit code 3
    if a master did not answer, slots moved, or something that was to go is there again.
    """
    app = current()
    _run(app, after, kept, moment, names, acts=app.is_yes)
    if not app.is_yes:
        app.output.note("nothing was changed; --yes does it")


@redis.command()
@_name_option
@click.option("--archive", metavar="SYSTEM/EPOCH", help="Which archive, if there are several clusters.")
@common_options
def snapshot(names: tuple[str, ...], archive: str | None) -> None:
    """Take a snapshot of every master: RDB files, sealed and signed, in the regions.

    Exit code 3, and no snapshot, if a master does not answer or slots move.
    """
    from cli.progress import ProgressReport
    from cli.redis_site import chosen_sites, host_signer, open_site, writable_archive, writing_repository
    from cli.redis_view import show_snapshots, snapshot_fields
    from cli.wiring import host_identity
    from pitr.datakeys import HostKeys
    from pitr.derived.site import Deadline
    from pitr.derived.snapshots import SnapshotTools, take_snapshot

    app = current()
    settings = app.settings()
    sites = [(one, open_site(one)) for one in chosen_sites(settings, names)]
    host = host_identity(settings)
    records: list[SnapshotRecord] = []
    with writing_repository(settings) as repository, ProgressReport(app.output) as progress:
        own = writable_archive(repository, host_signer(settings), archive)
        keys = HostKeys(repository, own, host.signer, host.recipients, random=os.urandom)
        tools = SnapshotTools(
            repository,
            own,
            host.signer,
            keys,
            now=lambda: datetime.now(UTC),
            random=os.urandom,
            on_progress=lambda done: progress.update("reading RDB files", done),
        )
        for one, site in sites:
            records.append(
                take_snapshot(tools, site, one.snapshots, Deadline(time.monotonic, one.deadline_s))
            )
            # One that is taken is told, also if the next one fails.
            app.partial_result = {"snapshots": [snapshot_fields(each) for each in records]}
    show_snapshots(app.output, records)
    app.output.finish({"snapshots": [snapshot_fields(one) for one in records]})


@redis.command()
@click.argument("snapshot_id", metavar="[SNAPSHOT]", required=False)
@click.option("--at", "moment", metavar="TIME", help="The newest snapshot that was whole then.")
@click.option("--name", metavar="NAME", help="Of this [[redis]].")
@click.option("--into", type=click.Path(path_type=Path), help="Where the files go; without it, list.")
@source_options
@common_options
def restore(
    snapshot_id: str | None,
    moment: str | None,
    name: str | None,
    into: Path | None,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Write a snapshot's RDB files and slots into a directory, or list the snapshots.

    The files are compared with what was read from the servers. No server is touched: README.txt beside them
    says what to do. Without --into, the snapshots are listed. May be repeated after a kill.
    """
    from cli.copy_faults import telling_faults
    from cli.redis_view import show_snapshots, snapshot_fields
    from pitr.datakeys import DataKeys
    from pitr.derived.snapshot_reader import list_snapshots, write_snapshot

    app = current()
    at = _moment(app, moment)
    source = source_of(source_urls, source_identity, source_region, source_archive)
    fields: dict[str, object] = {}
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        archive = choose_archive(reader.repository, source.archive)
        listing = list_snapshots(reader.repository, archive)
        for refused in listing.refused:
            app.output.warn(f"{refused.key} cannot be used: {refused.reason}")
        records = tuple(one for one in listing.records if name is None or one.name == name)
        if into is None:
            show_snapshots(app.output, records)
            fields["snapshots"] = [snapshot_fields(one) for one in records]
            app.output.finish(fields)
            return
        record = _chosen(records, snapshot_id, at)
        if reader.identity is None:
            raise KeyMissing("a snapshot is sealed", hint="give the identity: --identity FILE")
        keys = DataKeys(reader.repository, reader.identity.identity)
        paths = write_snapshot(reader.repository, keys, record, into)
    app.output.line(f"{record.snapshot}: {len(paths)} RDB files in {into}, whole and right")
    app.output.line(f"next: {into / 'README.txt'} says how to start servers with them")
    fields |= {**snapshot_fields(record), "files": [str(path) for path in paths]}
    app.output.finish(fields)


def _chosen(
    records: tuple[SnapshotRecord, ...], snapshot_id: str | None, at: datetime | None
) -> SnapshotRecord:
    from pitr.derived.snapshot_record import newest_before

    if snapshot_id is not None:
        found = next((one for one in records if one.snapshot == snapshot_id), None)
        if found is None:
            raise UsageRefused(f"there is no snapshot {snapshot_id!r}", hint="pitr redis restore lists them")
        return found
    if len({one.name for one in records}) > 1:
        raise UsageRefused("there are snapshots of several [[redis]]", hint="choose one with --name")
    record = newest_before(records, at)
    if record is None:
        raise TargetRefused(
            "there is no snapshot of Redis" + ("" if at is None else " that was whole then"),
            hint="pitr redis restore lists them",
        )
    return record


def _run(
    app: App, after: str, kept: tuple[str, ...], moment: str | None, names: tuple[str, ...], *, acts: bool
) -> None:
    from cli.redis_site import chosen_sites, open_site
    from cli.redis_view import show_walk, walk_fields
    from pitr.derived.policy import After, treat
    from pitr.derived.unknowable import unknowable

    settings = app.settings()
    sites = chosen_sites(settings, names)
    at = _moment(app, moment)
    declared = {one.prefix for site in sites for one in site.namespaces}
    if set(kept) - declared:
        raise UsageRefused(f"--keep {sorted(set(kept) - declared)[0]!r} is no declared prefix")
    shown: list[dict[str, object]] = []
    problems: list[str] = []
    app.partial_result = {"redis": shown}
    for one in sites:
        keep = frozenset(kept) & {each.prefix for each in one.namespaces}
        treatments = treat(one.namespaces, After(after), keep)
        walk = _walk(app, one, open_site(one), treatments, acts=acts)
        left = sum(count.left for count in walk.totals.values())
        snapshot = _newest_snapshot(app, one, treatments, at)
        found = {prefix: count.found for prefix, count in walk.totals.items()}
        unknown = unknowable(
            treatments,
            found,
            undeclared=sum(walk.undeclared.values()),
            clients=walk.clients,
            at=at,
            snapshot=snapshot,
        )
        show_walk(app.output, one.name, walk, treatments, unknown, acted=acts)
        shown.append(walk_fields(one.name, walk, treatments, unknown, acted=acts))
        problems += [f"{one.name}: {text}" for text in walk.problems]
        if left:
            problems.append(f"{one.name}: {left} keys that were to go are there: an application writes")
    if problems:
        raise DerivedInPart(
            "Redis was not walked as a whole" if not acts else "Redis is not as it was to be",
            detail="\n".join(problems),
            hint="stop what writes, see to what is missing, and repeat the same command, which goes on",
        )
    app.output.finish({"redis": shown})


def _walk(
    app: App, settings: RedisSettings, site: Any, treatments: tuple[Treatment, ...], *, acts: bool
) -> SiteWalk:
    from cli.lock import RunLock
    from cli.progress import ProgressReport
    from pitr.derived.policy import plan_digest
    from pitr.derived.run_note import RunNote
    from pitr.derived.site import Deadline
    from pitr.derived.walk import invalidate, survey

    deadline = Deadline(time.monotonic, settings.deadline_s)
    now_s = int(time.time())
    with ProgressReport(app.output) as progress:

        def tell(keys: int) -> None:
            progress.update(f"Redis {settings.name}: {keys} keys")

        if not acts:
            return survey(site, treatments, now_s=now_s, deadline=deadline, on_progress=tell)
        folder = app.settings().daemon.state_dir / "redis"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = RunLock(folder / f"{settings.name}.lock", whose="pitr redis apply")
        lock.acquire()
        try:
            note = RunNote(folder / f"{settings.name}.run")
            run = note.begin(plan_digest(settings.name, treatments), os.urandom)
            walk = invalidate(site, treatments, run=run, now_s=now_s, deadline=deadline, on_progress=tell)
            if not walk.problems and not any(one.left for one in walk.totals.values()):
                note.end()
            return walk
        finally:
            lock.release()


def _newest_snapshot(
    app: App, settings: RedisSettings, treatments: tuple[Treatment, ...], at: datetime | None
) -> SnapshotRecord | None:
    """Look for a snapshot if one is wanted; a store that is away must not keep Redis as it is."""
    from cli.reading import Source
    from pitr.derived.policy import Policy
    from pitr.derived.snapshot_reader import list_snapshots
    from pitr.derived.snapshot_record import newest_before
    from pitr.errors import PitrError
    from storage.store import StoreError

    if not any(one.policy is Policy.RESTORE for one in treatments):
        return None
    try:
        with open_source(app, Source()) as reader:
            listing = list_snapshots(reader.repository, choose_archive(reader.repository, None))
    except (StoreError, PitrError) as error:
        app.output.warn(f"the snapshots could not be listed: {error}")
        return None
    return newest_before(tuple(one for one in listing.records if one.name == settings.name), at)


def _moment(app: App, text: str | None) -> datetime | None:
    from cli.target import read_target

    if text is None:
        return None
    target = read_target(app, text, is_inclusive=True, timeline="latest")
    if target.instant is None:
        raise UsageRefused(f"--at {text}: Redis knows times only", hint="give a time with its zone")
    return target.instant
