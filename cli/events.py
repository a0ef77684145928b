"""``pitr events``: the table of its commands."""

from __future__ import annotations

import click

from cli.lazy import LazyCommand, LazyGroup

EVENTS: dict[str, LazyCommand] = {
    "fence": LazyCommand(
        "cli.events_fence", "events_fence", "Take a fence between Kafka and the database now."
    ),
    "map": LazyCommand(
        "cli.events_map", "events_map", "Say which offsets of Kafka belong to a moment of the database."
    ),
    "plan": LazyCommand(
        "cli.events_plan", "events_plan", "Say which events a restore lost, and where their replay starts."
    ),
}


@click.group(cls=LazyGroup, lazy_commands=EVENTS)
def events() -> None:
    """Kafka beside the database: which offsets belong to a moment, and what to replay after a restore."""
