"""``pitr events quarantine``: what a replay held back, and how it is released."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.events_cluster import mirror_option

if TYPE_CHECKING:
    from pitr.postgres.applied_events import ReplaySession
    from pitr.postgres.held_events import HeldRow

LISTED_MAX = 10_000


@click.group()
def events_quarantine() -> None:
    """Events that were held back: list, release and drop them."""


@events_quarantine.command("list")
@click.option("--restored", required=True, metavar="DSN", help="The restored database.")
@click.option("--replay", "replay_id", metavar="ID", help="Of this replay only.")
@click.option(
    "--limit",
    type=click.IntRange(1, LISTED_MAX),
    default=100,
    show_default=True,
    help="At most so many events.",
)
@click.option("--released", is_flag=True, help="Also those that were released.")
@common_options
def quarantine_list(restored: str, replay_id: str | None, limit: int, released: bool) -> None:
    """List events that were held back, in their order, and why.

    Their values are in the table pitr.quarantine, and are not shown.
    """
    from pitr.postgres.applied_events import ReplaySession
    from pitr.postgres.held_events import held_counts, held_rows

    output = current().output
    with ReplaySession(restored) as session:
        if not session.is_prepared():
            output.line("nothing was replayed into this database")
            output.finish({"counts": [], "events": []})
            return
        _check_replay(session, replay_id)
        counts = held_counts(session, replay_id)
        rows = held_rows(session, replay_id=replay_id, limit=limit, with_released=released, is_whole=False)
    output.table(
        ["replay", "topic", "reason", "held", "no longer"],
        [[one, topic, reason, str(held), str(freed)] for one, topic, reason, held, freed in counts],
        empty="nothing is held back",
    )
    if rows:
        output.line()
        output.table(
            ["number", "place", "type", "key", "reason", "detail"], [_cells(row) for row in rows], empty=""
        )
    output.finish(
        {
            "counts": [
                {"replay_id": one, "topic": topic, "reason": reason, "held": held, "released": freed}
                for one, topic, reason, held, freed in counts
            ],
            "events": [_fields(row) for row in rows],
        }
    )


@events_quarantine.command("release")
@click.argument("numbers", nargs=-1, type=click.IntRange(1))
@click.option("--restored", required=True, metavar="DSN", help="The restored database.")
@click.option("--replay", "replay_id", required=True, metavar="ID", help="The replay that held them back.")
@click.option("--reason", metavar="WORD", help="All that are held for this reason.")
@click.option("--topic", metavar="NAME", help="All of this topic.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option(
    "--handlers",
    "handlers_path",
    type=click.Path(path_type=Path),
    help="What is done with each type of event (default: [events.replay] handlers_file).",
)
@mirror_option
@common_options
def quarantine_release(
    numbers: tuple[int, ...],
    restored: str,
    replay_id: str,
    reason: str | None,
    topic: str | None,
    everything: bool,
    handlers_path: Path | None,
    mirror: bool,
) -> None:
    """Release events: apply them after all, in their keys' order.

    NUMBERS are those of `pitr events quarantine list`. An event whose key is at a stand goes only with
    all that were held before it. What still cannot be applied stays.
    """
    from cli.events_cluster import open_cluster
    from cli.events_sink import events_settings_of, load_handlers, open_sink
    from pitr.events.release import ReleaseChoice, ReleaseResult, release
    from pitr.postgres.applied_events import ReplaySession

    if sum((bool(numbers), reason is not None or topic is not None, everything)) != 1:
        raise UsageRefused(
            "which events are meant is not clear", hint="give NUMBERS, or --reason and --topic, or --all"
        )
    app = current()
    settings = events_settings_of(app)
    loaded = load_handlers(handlers_path, settings)
    chosen = ReleaseChoice(numbers, reason, topic, everything)
    formats = {name: one.format for name, one in settings.flows.items()}
    with open_cluster(settings, is_mirror=mirror) as cluster, ReplaySession(restored) as session:
        _check_replay(session, replay_id)
        with open_sink(loaded, session, cluster, replay_id) as sink:
            done = release(
                session, sink, loaded.handlers, replay_id, chosen, formats=formats, calls=loaded.calls
            )
    if done == ReleaseResult():
        _tell_none(app)
    app.output.line(
        f"{done.applied} events were applied, {done.duplicate} had been before, {done.held} are held still"
    )
    app.output.finish({"applied": done.applied, "duplicate": done.duplicate, "held": done.held})


@events_quarantine.command("drop")
@click.argument("numbers", nargs=-1, type=click.IntRange(1))
@click.option("--restored", required=True, metavar="DSN", help="The restored database.")
@click.option("--replay", "replay_id", required=True, metavar="ID", help="The replay that held them back.")
@click.option("--reason", metavar="WORD", help="All that are held for this reason.")
@click.option("--topic", metavar="NAME", help="All of this topic.")
@common_options
def quarantine_drop(
    numbers: tuple[int, ...], restored: str, replay_id: str, reason: str | None, topic: str | None
) -> None:
    """Give events up, with --yes: they are never applied.

    For what can never be: later events of its key cannot be released before. It stays in the table
    pitr.quarantine, as dropped.
    """
    from pitr.events.release import ReleaseChoice, drop
    from pitr.postgres.applied_events import ReplaySession

    named = reason is not None or topic is not None
    if bool(numbers) == named:
        raise UsageRefused(
            "which events are meant is not clear", hint="give NUMBERS, or --reason and --topic"
        )
    app = current()
    if not app.is_yes:
        raise UsageRefused(
            "dropping events needs --yes",
            detail="what they would have done is then never done by a replay",
            hint="look at them with pitr events quarantine list",
        )
    with ReplaySession(restored) as session:
        _check_replay(session, replay_id)
        count = drop(session, replay_id, ReleaseChoice(numbers, reason, topic))
    if not count:
        _tell_none(app)
    app.output.line(f"{count} events were dropped")
    app.output.finish({"dropped": count})


def _check_replay(session: ReplaySession, replay_id: str | None) -> None:
    """Refuse a name that no replay into this database has: of a mistyped one nothing would be held."""
    if replay_id is not None and not session.knows(replay_id):
        raise UsageRefused(
            f"no replay {replay_id[:64]!r} ran into this database",
            hint="pitr events quarantine list --restored DSN shows their names",
        )


def _tell_none(app: App) -> None:
    app.output.warn(
        "nothing that is held was meant: pitr events quarantine list --restored DSN shows what is, and why"
    )


def _cells(row: HeldRow) -> list[str]:
    from pitr.events.quarantine import shown_key

    kind = f"{row.event_type or '?'} {row.version}"
    is_released = row.released_at is not None and row.reason != "dropped"
    reason = f"{row.reason} (released)" if is_released else row.reason
    cells = [
        str(row.number), f"{row.topic}[{row.partition}]@{row.offset}", kind, shown_key(row.key) or "", reason,
        row.detail[:120],
    ]  # fmt: skip
    # A key, a type and a server's words are strangers' text, and this is shown on a terminal.
    return [one if one.isprintable() else ascii(one)[1:-1] for one in cells]


def _fields(row: HeldRow) -> dict[str, object]:
    from pitr.events.quarantine import shown_key
    from pitr.recovery import instant_text

    return {
        "number": row.number,
        "replay_id": row.replay_id,
        "topic": row.topic,
        "partition": row.partition,
        "offset": row.offset,
        "event_id": row.event_id,
        "type": row.event_type,
        "version": row.version,
        "key": shown_key(row.key),
        "reason": row.reason,
        "detail": row.detail,
        "stops_key": row.stops_key,
        "held_at": None if row.held_at is None else instant_text(row.held_at),
        "released_at": None if row.released_at is None else instant_text(row.released_at),
    }
