"""``pitr events plan``: where replay starts in each partition after a restore, and what it will find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.events_cluster import mirror_option
from cli.made_file import check_place, write_made
from cli.reading import Source, source_of, source_options
from cli.target import read_target, target_options
from cli.units import read_duration_option

if TYPE_CHECKING:
    from cli.events_asking import Choice
    from cli.events_settings import EventsSettings
    from pitr.events.flows import FlowDeclaration
    from pitr.events.mirror_plan import MirrorPlan
    from pitr.events.partition import TopicPartition
    from pitr.events.plan import ReplayPlan
    from pitr.events.plan_build import PlanRequest


@click.command()
@click.option(
    "--restored", metavar="DSN", help="The restored server: paused at its target, or just promoted."
)
@click.option("--at", "target", metavar="TARGET", help="A moment, as for a restore; no server is asked.")
@click.option("--topic", "names", multiple=True, metavar="TOPIC", help="Only this topic; may be repeated.")
@click.option(
    "--accept-gap",
    "accepted",
    multiple=True,
    metavar="TOPIC[N]",
    help="Go on without the events that are missing in this partition; may be repeated.",
)
@click.option(
    "--look-back",
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="How long before the end a failover may lie whose lost commits are looked for.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the plan for a replay.")
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="Write it as an HTML page.")
@mirror_option
@target_options
@source_options
@common_options
def events_plan(
    restored: str | None,
    target: str | None,
    names: tuple[str, ...],
    accepted: tuple[str, ...],
    look_back: str,
    out: Path | None,
    page: Path | None,
    mirror: bool,
    exclusive: bool,
    timeline: str,
    backup_id: str | None,
    damaged: tuple[str, ...],
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Say which events a restore lost, and where their replay starts.

    Reads every event from there on, once, and changes nothing. With --restored the server says which
    transactions it has, so each event that names its transaction is judged exactly; with --at positions in
    WAL alone decide, and the rest is unknown. With --mirror the copy is read, and the source never asked.
    Exit code 4 if events are missing that --accept-gap does not name.
    """
    from cli.events_asking import Choice, of_moment, of_server
    from cli.events_cluster import open_transactions
    from cli.events_plan_view import plan_json, refuse_gaps, show_plan, unaccepted

    app = current()
    _check_options(restored, target, out, page)
    settings = _settings(app)
    reach = timedelta(seconds=read_duration_option("--look-back", look_back))
    choice = Choice(declared_flows(settings, names), reach)
    source = source_of(source_urls, source_identity, source_region, source_archive)
    if restored is not None:
        asking = of_server(app, restored, source, choice)
    else:
        parsed = read_target(app, target or "", is_inclusive=not exclusive, timeline=timeline)
        asking = of_moment(app, parsed, source, choice, backup_id, damaged)
    with asking as found_out:
        request = replace(found_out, wait=open_transactions(app.output))
        found = _over_mirror(app, settings, request, source, choice) if mirror else None
        made = found.plan if found is not None else _build(app, settings, request)
    for fault in choice.faults:
        app.output.warn(fault)
    fields = {**plan_json(made, found), "accepted_gaps": sorted(accepted), "faults": choice.faults}
    app.partial_result = fields
    show_plan(app.output, made, found)
    if page is not None:
        from cli.events_plan_page import render_plan

        write_made(page, render_plan(made, accepted, choice.faults, found))
    refuse_gaps(unaccepted(made, accepted))
    if out is not None:
        from pitr.events.plan_code import encode_plan

        write_made(out, encode_plan(made))
    app.output.finish(fields)


def _check_options(restored: str | None, target: str | None, out: Path | None, page: Path | None) -> None:
    """Refuse what cannot be, before anything is read."""
    if (restored is None) == (target is None):
        both = "--restored and --at exclude each other" if target else "one of --restored and --at is needed"
        raise UsageRefused(both, hint="pitr events plan --help")
    for made_file in (out, page):
        if made_file is not None:
            check_place(made_file)


def _settings(app: App) -> EventsSettings:
    from pitr.errors import NotInitialised

    settings = app.settings().events
    if settings is None:
        raise NotInitialised("the configuration has no [events]", hint="see docs/events.md")
    return settings


def declared_flows(settings: EventsSettings, names: Sequence[str]) -> list[FlowDeclaration]:
    """Return the declarations of the topics asked for, or of all, in their order.  Raises UsageRefused."""
    unknown = sorted(set(names) - settings.flows.keys())
    if unknown:
        raise UsageRefused(
            f"topic {unknown[0]} is not declared: nothing says how its events and the database come together",
            hint="declare its flow in an [[events.topic]]; see docs/events.md",
        )
    return [one for one in settings.topics if not names or one.topic in names]


def _build(app: App, settings: EventsSettings, request: PlanRequest) -> ReplayPlan:
    from cli.events_cluster import open_cluster
    from pitr.events.plan_build import build_plan

    with open_cluster(settings, is_mirror=False) as cluster:
        return build_plan(request, cluster.broker, _teller(app))


def _over_mirror(
    app: App, settings: EventsSettings, request: PlanRequest, source: Source, choice: Choice
) -> MirrorPlan:
    from cli.events_cluster import mirror_of, open_cluster
    from cli.mirror_parts import mirror_names, open_pairs
    from pitr.events.mirror_plan import build_mirror_plan

    mirror = mirror_of(settings)
    with (
        open_pairs(app, mirror, source, choice.faults) as pairs,
        open_cluster(settings, is_mirror=True) as cluster,
    ):
        return build_mirror_plan(request, cluster.own, mirror_names(mirror), pairs, _teller(app))


def _teller(app: App) -> Callable[[TopicPartition, int], None]:
    told: dict[TopicPartition, int] = {}

    def tell(at: TopicPartition, count: int) -> None:
        # Each batch is 5,000; a line for every hundred thousand is enough for who waits.
        if count - told.get(at, 0) >= 100_000:
            told[at] = count
            app.output.note(f"{at}: {count} events read")

    return tell
