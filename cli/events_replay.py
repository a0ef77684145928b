"""``pitr events replay``: what a plan names, into the restored database or to where its handlers say."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.errors import ChecksFailed, UsageRefused
from cli.events_cluster import mirror_option

if TYPE_CHECKING:
    from cli.events_cluster import EventsCluster
    from cli.events_sink import LoadedHandlers
    from pitr.events.partition import TopicPartition
    from pitr.events.plan import ReplayPlan
    from pitr.events.replay import ReplayProgress, ReplayRequest, ReplayResult
    from pitr.postgres.row_diff import TableDiff

_HASH = re.compile(r"[0-9a-fA-F]{64}")
_PARTITION = re.compile(r"(.+)\[(\d{1,9})\]")
_SHOWN_ROWS_MAX = 5
_SHOWN_CHARS_MAX = 120


@click.command()
@click.option(
    "--plan",
    "plan_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The file of `pitr events plan`.",
)
@click.option(
    "--plan-hash", metavar="SHA256", help="The plan's hash, from whoever read it; a dry run shows it."
)
@click.option(
    "--restored",
    required=True,
    metavar="DSN",
    help="The restored database, promoted, apart from its clients.",
)
@click.option(
    "--handlers",
    "handlers_path",
    type=click.Path(path_type=Path),
    help="What is done with each type of event (default: [events.replay] handlers_file).",
)
@click.option("--dry-run", is_flag=True, help="Do all of it in one transaction, show the rows, and undo it.")
@click.option(
    "--rate-limit", type=click.IntRange(1, 10_000_000), metavar="N", help="At most so many events a second."
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Events in one transaction (default: 10000).",
)
@click.option(
    "--accept-gap",
    "accepted",
    multiple=True,
    metavar="TOPIC[N]",
    help="Go on without records that are gone; may be repeated.",
)
@mirror_option
@common_options
def events_replay(
    plan_path: Path,
    plan_hash: str | None,
    restored: str,
    handlers_path: Path | None,
    dry_run: bool,
    rate_limit: int | None,
    batch: int | None,
    accepted: tuple[str, ...],
    mirror: bool,
) -> None:
    """Replay what a restore lost, as a plan says, once.

    Each batch is one transaction with its effects, the ids of its events and how far it is: when it is
    interrupted, the same command goes on. Events that cannot be applied are held back with the later ones of
    their key; `pitr events quarantine` shows them.
    """
    from cli.events_cluster import open_cluster
    from cli.events_sink import check_targets, events_settings_of, load_handlers, read_plan
    from pitr.events.replay import ReplayRequest

    app = current()
    settings = events_settings_of(app)
    plan = read_plan(plan_path)
    if plan_hash is None and not dry_run:
        raise UsageRefused(
            "a replay needs the hash of its plan",
            detail="so that what runs is what somebody has read",
            hint="read the plan, try it with --dry-run, and name the hash with --plan-hash",
        )
    if plan_hash is not None and _HASH.fullmatch(plan_hash) is None:
        raise UsageRefused("--plan-hash is 64 hexadecimal digits")
    loaded = load_handlers(handlers_path, settings)
    limit = rate_limit or settings.replay.rate_limit
    request = ReplayRequest(
        plan,
        loaded.handlers,
        is_dry_run=dry_run,
        batch_records=batch or settings.replay.batch,
        rate=None if limit is None else float(limit),
        accepted_gaps=frozenset(map(read_partition, accepted)),
        calls=loaded.calls,
    )
    with open_cluster(settings, is_mirror=mirror) as cluster:
        check_targets(loaded.handlers, (one.topic for one in plan.topics), cluster)
        result = run_replay(app, cluster, loaded, request, plan_hash or plan.hash, restored)
    show_result(app, request, result)
    fields = result_fields(request, result)
    app.partial_result = {**fields}
    _refuse_misread(plan, result)
    app.output.finish(fields)


def _refuse_misread(plan: ReplayPlan, result: ReplayResult) -> None:
    """Raise ChecksFailed where the log has changed since the plan was made; it was replayed as it is."""
    from pitr.events.reconcile import misread

    if wrong := misread(plan, result.counts):
        more = f"\nand {len(wrong) - _SHOWN_ROWS_MAX} more" if len(wrong) > _SHOWN_ROWS_MAX else ""
        raise ChecksFailed(
            f"the log is not the one that the plan was made of, in {len(wrong)} partitions",
            detail="\n".join(wrong[:_SHOWN_ROWS_MAX]) + more,
            hint="make a plan anew, and replay it: what was applied is not applied again",
        )


def run_replay(
    app: App,
    cluster: EventsCluster,
    loaded: LoadedHandlers,
    request: ReplayRequest,
    plan_hash: str,
    restored: str,
) -> ReplayResult:
    """Carry a replay out, and show how far it is.  Raises what ``Replay.run`` does, and PlanRefused."""
    from cli.events_sink import open_sink
    from cli.progress import ProgressReport
    from pitr.events.replay import Ports, Replay, check_place, check_plan, statuses_of
    from pitr.postgres.applied_events import ReplaySession
    from pitr.postgres.restored_history import left_at

    begun = time.monotonic()
    with (
        ReplaySession(restored) as session,
        ProgressReport(app.output, unit="events") as report,
    ):
        check_plan(request.plan, plan_hash, session, cluster.broker)
        check_place(request.plan, left_at(restored, request.plan.restored.timeline))
        has_begun = session.is_prepared() and session.cursors(request.replay_id)
        # Over a mirror offsets are others; and once it has begun, handlers may move cursors.
        if cluster.names is None and not has_begun:
            _check_sinks(app, request.plan, restored)

        def tell(progress: ReplayProgress) -> None:
            report.update(f"replay {progress.topic}", progress.read, progress.total)

        ports = Ports(cluster.broker, statuses_of(session), time.monotonic, time.sleep, tell)
        with open_sink(loaded, session, cluster, request.replay_id, is_dry_run=request.is_dry_run) as sink:
            result = Replay(request, ports, session, sink).run()
    read = f"{result.total('read'):,} events read"
    took = f"{time.monotonic() - begun:.1f} s"
    app.output.note(
        f"{read}, by all runs of this replay; this one took {took}" if result.resumed else f"{read} in {took}"
    )
    _tell_of_later(app, cluster, request.plan)
    return result


def _tell_of_later(app: App, cluster: EventsCluster, plan: ReplayPlan) -> None:
    """Warn of what came behind the plan's end: a publisher of the lost database may still be at work."""
    from pitr.events.broker import BrokerRefused, BrokerUnavailable
    from pitr.events.partition import TopicPartition
    from pitr.events.reconcile import came_since

    try:
        topics = cluster.broker.topics([one.topic for one in plan.topics])
        ports = [TopicPartition(one.name, at) for one in topics.values() for at in range(one.partitions)]
        later = came_since(plan, cluster.broker.ends(ports))
    except (BrokerUnavailable, BrokerRefused) as failure:
        app.output.warn(f"nobody can tell what came since the plan was made: {failure.in_one_line}")
        return
    if later:
        app.output.warn(
            f"{sum(later.values()):,} records came since the plan was made, the first in {next(iter(later))},"
            " and are not replayed; if any is of the lost database, make a new plan once it is silent"
        )


def _check_sinks(app: App, plan: ReplayPlan, restored: str) -> None:
    """Refuse if a sink that keeps its cursor took events since the plan was made.  Raises PlanRefused."""
    from cli.events_sink import events_settings_of
    from pitr.events.refusals import PlanRefused
    from pitr.events.replay import moved_cursors
    from pitr.postgres.restored_history import RestoredServer

    flows = events_settings_of(app).flows
    asked = [
        (topic, declared.cursor_sql)
        for topic in plan.topics
        if (declared := flows.get(topic.topic)) is not None and declared.cursor_sql is not None
    ]
    if not asked:
        return
    with RestoredServer(restored) as server:
        for topic, statement in asked:
            if moved := moved_cursors(topic, server.cursor(statement)):
                raise PlanRefused(
                    f"the sink of topic {topic.topic} has gone on since the plan was made",
                    detail=f"its cursor lies beyond the plan's start in partition {moved[0]}",
                    hint="stop it until the replay is done, and make a new plan",
                )


def read_partition(text: str) -> TopicPartition:
    """Return the partition of ``TOPIC[N]``.  Raises UsageRefused."""
    from pitr.events.partition import TopicPartition

    match = _PARTITION.fullmatch(text)
    if match is None:
        raise UsageRefused(
            f"not TOPIC[N]: {text[:200]!r}", hint="name each partition: --accept-gap 'orders[3]'"
        )
    return TopicPartition(match[1], int(match[2]))


def show_result(app: App, request: ReplayRequest, result: ReplayResult) -> None:
    """Write for people what was done."""
    output = app.output
    if request.is_dry_run:
        output.line("dry run: all of it was done, and undone")
    elif result.resumed:
        output.line("gone on from an earlier run; the figures are of both")
    words = ("read", "in database", "applied", "duplicate", "held")
    rows = []
    for at, counts in sorted(result.counts.items()):
        passed = sum(count for word, count in counts.items() if word not in words)
        rows.append(
            [str(at), str(result.cursors[at]), *(str(counts.get(word, 0)) for word in words), str(passed)]
        )
    output.table(["partition", "next", *words, "passed over"], rows, empty="nothing was to be replayed")
    for one in result.diff:
        _show_diff(app, one)
    if held := result.total("held"):
        listing = f"; pitr events quarantine list --restored DSN --replay {result.replay_id}"
        output.warn(f"{held} events are held back{'' if request.is_dry_run else listing}")
        rows = [
            [one.topic, one.reason, one.detail[:_SHOWN_CHARS_MAX], str(one.count)] for one in result.because
        ]
        output.table(["held in", "reason", "detail", "events"], rows, empty="none of them is held still")
    if request.is_dry_run:
        output.line(f"plan hash: {request.plan.hash}")


def _show_diff(app: App, diff: TableDiff) -> None:
    output = app.output
    output.line(f"{diff.table}: {diff.inserted} rows new, {diff.updated} changed, {diff.deleted} gone")
    for one in diff.samples[:_SHOWN_ROWS_MAX]:
        if one.before is not None:
            output.line(f"  - {one.before}")
        if one.after is not None:
            output.line(f"  + {one.after}")


def result_fields(request: ReplayRequest, result: ReplayResult) -> Mapping[str, object]:
    """Return what was done, for JSON."""
    return {
        "replay_id": result.replay_id,
        "plan_hash": request.plan.hash,
        "handlers_sha256": request.handlers.sha256,
        "is_dry_run": request.is_dry_run,
        "is_resumed": result.resumed,
        "partitions": [
            {
                "topic": at.topic,
                "partition": at.partition,
                "next_offset": result.cursors[at],
                "counts": dict(counts),
            }
            for at, counts in sorted(result.counts.items())
        ],
        "held_because": [
            {"topic": one.topic, "reason": one.reason, "detail": one.detail, "count": one.count}
            for one in result.because
        ],
        "diff": _diff_fields(result.diff),
    }


def _diff_fields(diff: Sequence[TableDiff]) -> list[dict[str, object]]:
    return [
        {
            "table": one.table,
            "inserted": one.inserted,
            "updated": one.updated,
            "deleted": one.deleted,
            "samples": [
                {"before": row.before, "after": row.after, "changed": row.changed_fields()}
                for row in one.samples
            ],
        }
        for one in diff
    ]
