"""``pitr find``: the last moment at which a query still said that all is well, to the transaction."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.reading import Source, open_source, source_of
from cli.target import local_zone, read_target
from cli.units import read_duration_option

if TYPE_CHECKING:
    from cli.planning import Looked
    from cli.wiring import Reader
    from pitr.recovery import RecoveryTarget
    from pitr.restore_plan import RestorePlan
    from pitr.wal_walk import ReadWal
    from verifiers.find_run import FindRequest, Found, Told
    from verifiers.find_stage import StageSetting
    from verifiers.scratch import ScratchPlace

_WORKERS_MAX = 32
RUN_PREFIX = "find-"


class Chosen(TypedDict):
    """The options that say how it is done, by their names on the command line."""

    database: str
    errors: str
    timeout: str
    deadline: str
    scratch: Path | None
    superuser: str | None
    workers: int


@click.command()
@click.option("--sql", required=True, metavar="QUERY", help="A query that returns true while all is well.")
@click.option(
    "--from",
    "first",
    required=True,
    metavar="TARGET",
    help="A moment when it did: a time with zone, lsn:X/Y",
)
@click.option(
    "--to",
    "last",
    default="latest",
    show_default=True,
    metavar="TARGET",
    help="A moment when it no longer did.",
)
@click.option(
    "--database", default="postgres", show_default=True, metavar="NAME", help="The database to ask."
)
@click.option(
    "--errors",
    type=click.Choice(["unhealthy", "healthy"]),
    default="unhealthy",
    show_default=True,
    help="What it means where the query fails, as for a table that is not there.",
)
@click.option(
    "--timeline", default="latest", show_default=True, metavar="N|latest|current", help="Timeline to follow."
)
@click.option(
    "--timeout", default="5min", show_default=True, metavar="DURATION", help="How long one answer may take."
)
@click.option(
    "--deadline", default="12h", show_default=True, metavar="DURATION", help="How long the search may take."
)
@click.option(
    "--source",
    "source_urls",
    multiple=True,
    metavar="URL",
    help="Read this region; needs no configuration; may be repeated.",
)
@click.option(
    "--identity",
    "source_identity",
    type=click.Path(path_type=Path),
    help="The reader's identity file (default: [verify] identity_file).",
)
@click.option("--region", "source_region", metavar="NAME", help="Read this configured region alone.")
@click.option(
    "--archive", "source_archive", metavar="SYSTEM/EPOCH", help="Which archive, if there are several."
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    help="Restore below this folder, which is wiped (default: [verify] scratch_dir).",
)
@click.option(
    "--workers", type=click.IntRange(1, _WORKERS_MAX), default=3, show_default=True, help="Parallel fetches."
)
@click.option(
    "--superuser", metavar="NAME", help="The restored cluster's superuser (default: as the backup says)."
)
@common_options
def find(
    sql: str,
    first: str,
    last: str,
    timeline: str,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
    **chosen: Unpack[Chosen],
) -> None:
    """Find the last moment before something went wrong, to the transaction.

    The query returns true while all is well. It is put to a scratch server that is restored once to --from
    and taken on from there; each look halves what may have done it. In the end it is known which
    transaction did, what that touched, and how to restore what was right before. docs/find.md
    """
    from cli.find_view import found_fields, restore_words, show_found

    app = current()
    source = _source(app, source_urls, source_identity, source_region, source_archive)
    targets = [read_target(app, text, is_inclusive=True, timeline=timeline) for text in (first, last)]
    found = _run(app, source, sql, targets[0], targets[1], chosen)
    words = restore_words(app, source, found, timeline)
    show_found(app.output, found, app.time_zone() or local_zone(), words)
    app.output.finish(found_fields(found, words))


def _source(
    app: App, urls: tuple[str, ...], identity: Path | None, region: str | None, archive: str | None
) -> Source:
    if identity is None and not urls:
        identity = app.settings().verify_or_default.identity_file
    if identity is None:
        raise UsageRefused(
            "a search needs the reader's identity", hint="--identity FILE, or [verify] identity_file"
        )
    if urls and region is not None:
        raise UsageRefused("--source and --region exclude each other")
    return source_of(urls, identity, region, archive)


def _run(
    app: App, source: Source, sql: str, first: RecoveryTarget, last: RecoveryTarget, chosen: Chosen
) -> Found:
    from cli.planning import look, plan_from
    from cli.progress import ProgressReport
    from cli.restore import progress_words
    from pitr.postgres.yes_no import QuestionRefused
    from verifiers.find_run import Search
    from verifiers.run_ids import uuid7
    from verifiers.scratch import ScratchRoot, check_room

    root = ScratchRoot(_scratch_dir(app, source, chosen))
    root.prepare()
    now = datetime.now(UTC)
    with root.slot():
        for left in root.abandoned():
            if left.run_id.startswith(RUN_PREFIX):
                left.place.wipe()
                app.output.warn(f"search {left.run_id} was killed; what it had restored was wiped")
        root.drop_locks()
        run_id = RUN_PREFIX + uuid7(now, os.urandom(10))
        with open_source(app, source) as reader, root.place(run_id, now) as place:
            try:
                looked = look(reader, source, app.output)
                # Refused, or warned of, once: which epoch a target means, and forks.
                plan = plan_from(looked, reader, source, last, app.output)
                check_room(place.path, plan.backup.size_bytes)
                setting = _setting(app, reader, source, plan, place, _planner(reader, looked), chosen)
                request = _request(reader, setting, sql, first, last, chosen)
                with ProgressReport(app.output) as report:
                    search = Search(
                        request,
                        on_progress=lambda progress: report.update(*progress_words(progress)),
                        tell=lambda told: app.output.note(_told(told)),
                    )
                    return search.run()
            except QuestionRefused as cause:
                raise UsageRefused(
                    cause.message,
                    detail=cause.detail,
                    hint="one SELECT with one boolean column, such as: SELECT count(*) > 9 FROM orders",
                ) from cause
            finally:
                place.wipe()


def _told(told: Told) -> str:
    of = "" if told.at_most is None else f" of at most {told.at_most}"
    return f"look {told.number}{of}: {told.words}"


def _scratch_dir(app: App, source: Source, chosen: Chosen) -> Path:
    if chosen["scratch"] is not None:
        return chosen["scratch"].absolute()
    if source.urls:
        raise UsageRefused("a search needs a place to restore to", hint="--scratch FOLDER")
    return app.settings().verify_or_default.scratch_dir


def _planner(reader: Reader, looked: Looked) -> Callable[[RecoveryTarget, str | None], RestorePlan]:
    from cli.forks import refuse_forked
    from pitr.stop import resolve_plan

    survey, forks = looked.survey, looked.forks
    read_wal = _wal_reader(reader)

    def plan_to(target: RecoveryTarget, backup: str | None) -> RestorePlan:
        return refuse_forked(resolve_plan(target, survey, read_wal, backup=backup), forks)

    return plan_to


def _wal_reader(reader: Reader) -> ReadWal:
    from cli.restore import data_keys_of

    keys = data_keys_of(reader)
    return lambda unit: reader.repository.read_wal(unit.key, keys)


def _setting(
    app: App,
    reader: Reader,
    source: Source,
    plan: RestorePlan,
    place: ScratchPlace,
    plan_to: Callable[[RecoveryTarget, str | None], RestorePlan],
    chosen: Chosen,
) -> StageSetting:
    from cli.restore import data_keys_of
    from cli.restore_choices import cache_dir
    from cli.restore_owner import choose_owner
    from cli.wiring import preferred_bin_dir
    from pitr.postgres.installation import find_pg
    from pitr.postgres.server_user import readable_installation
    from verifiers.find_stage import StageSetting

    user = choose_owner(None, ("true",))
    settings = None if source.urls else app.settings()
    installation = find_pg(plan.backup.server_version // 10_000, preferred=preferred_bin_dir(settings))
    return StageSetting(
        place=place,
        repository=reader.repository,
        data_keys=data_keys_of(reader),
        installation=readable_installation(installation, user, cache_dir),
        user=user,
        superuser=chosen["superuser"] or plan.backup.superuser,
        plan_to=plan_to,
        workers=chosen["workers"],
    )


def _request(
    reader: Reader,
    setting: StageSetting,
    sql: str,
    first: RecoveryTarget,
    last: RecoveryTarget,
    chosen: Chosen,
) -> FindRequest:
    from pitr.postgres.yes_no import Question
    from verifiers.find_run import FindRequest

    return FindRequest(
        setting=setting,
        read_wal=_wal_reader(reader),
        question=Question(sql, chosen["database"], read_duration_option("--timeout", chosen["timeout"])),
        first=first,
        last=last,
        deadline_s=read_duration_option("--deadline", chosen["deadline"]),
        is_error_healthy=chosen["errors"] == "healthy",
    )
