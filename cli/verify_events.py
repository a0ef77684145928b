"""What check C16 asks: the scratch server, the signed fences of the region that is verified, and Kafka."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cli.errors import ConfigRefused
from cli.events_asking import Choice, of_reader
from cli.output import Output
from cli.reading import Source
from cli.settings import Settings
from pitr.errors import NotInitialised
from pitr.events.plan_build import build_plan
from pitr.events.starts import LOOK_BACK
from pitr.postgres.address import database_of, in_database
from verifiers.checks_events import EventsSeen, LookAtEvents
from verifiers.scratch_server import ScratchServer

if TYPE_CHECKING:
    from cli.wiring import Reader


def events_look(settings: Settings, reader: Reader, source: Source, output: Output) -> LookAtEvents | None:
    """Return who looks at Kafka for a verification; None where the configuration has no [events]."""
    events = settings.events
    if events is None:
        return None

    def look(server: ScratchServer, check_time: Callable[[], None]) -> EventsSeen:
        from cli.kafka_client import open_kafka

        dsn = in_database(
            server.instance.dsn, user=server.superuser, database=database_of(settings.cluster.dsn)
        )
        choice = Choice([events.flows[name] for name in sorted(events.flows)], LOOK_BACK)
        try:
            broker = open_kafka(events.bootstrap, events.client_file)
        except ConfigRefused as wrong:
            raise NotInitialised(wrong.message, detail=wrong.detail, hint=wrong.hint) from wrong
        try:
            # Before fences are read: where nobody answers, that is all there is to say.
            broker.cluster_id()
            with of_reader(output, dsn, reader, source, choice) as request:
                plan = build_plan(request, broker, lambda _at, _count: check_time())
        finally:
            broker.close()
        return EventsSeen(plan, choice.last[0] if choice.last else None, tuple(choice.faults))

    return look
