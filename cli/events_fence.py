"""``pitr events fence``: the running daemon takes a fence now."""

from __future__ import annotations

import click

from cli.context import common_options, current

TIMEOUT_S = 120.0


@click.command()
@common_options
def events_fence() -> None:
    """Take a fence between Kafka and the database now.

    The running daemon does it: offsets of the declared topics, then a mark in PostgreSQL, then ends again.
    Before a risky change it says exactly which events were in the database. Kafka away gives a fence that
    says so; it is a warning, not a failure.
    """
    from cli.control import ControlRequest, ask_own_daemon

    app = current()
    taken = ask_own_daemon(app.settings().daemon, ControlRequest("fence"), timeout_s=TIMEOUT_S)
    app.output.line(f"fence {taken['number']} at {taken['at']}, timeline {taken['timeline']}, {taken['lsn']}")
    if taken["unknown"] is not None:
        app.output.warn(f"it knows nothing of Kafka: {taken['unknown']}")
    elif taken["trouble"] is not None:
        app.output.warn(f"what is above it is not known: {taken['trouble']}")
    if taken["missing_topics"]:
        app.output.warn(f"declared topics that Kafka does not have: {', '.join(taken['missing_topics'])}")
    app.output.table(
        ["topic", "partition", "begins", "before", "after"],
        [
            [
                topic["topic"],
                str(one["partition"]),
                str(one["low"]),
                str(one["before"]),
                "?" if one["after"] is None else str(one["after"]),
            ]
            for topic in taken["topics"]
            for one in topic["partitions"]
        ],
        empty="",
    )
    app.output.finish(taken)
