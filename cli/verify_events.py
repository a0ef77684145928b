"""What check C16 asks: the scratch server, the signed fences of the region that is verified, and Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cli.errors import ConfigRefused
from cli.events_asking import Choice, of_reader
from cli.events_cluster import EventsCluster, open_cluster
from cli.mirror_parts import stored_pairs
from cli.output import Output
from cli.reading import Source
from cli.settings import Settings
from pitr.errors import NotInitialised
from pitr.events.mirror_plan import MirrorPlan, build_mirror_plan
from pitr.events.plan_build import build_plan
from pitr.events.starts import LOOK_BACK
from pitr.postgres.address import database_of, in_database
from verifiers.checks_events import EventsSeen, LookAtEvents
from verifiers.scratch_server import ScratchServer

if TYPE_CHECKING:
    from cli.events_settings import EventsSettings
    from cli.wiring import Reader


def events_look(settings: Settings, reader: Reader, source: Source, output: Output) -> LookAtEvents | None:
    """Return who looks at Kafka for a verification; None where the configuration has no [events]."""
    events = settings.events
    if events is None:
        return None

    def look(server: ScratchServer, check_time: Callable[[], None]) -> EventsSeen:
        dsn = in_database(
            server.instance.dsn, user=server.superuser, database=database_of(settings.cluster.dsn)
        )
        choice = Choice(events.topics, LOOK_BACK)
        mirror = events.mirror if events.mirror is not None and events.mirror.verify else None
        over: MirrorPlan | None = None

        def told(_at: object, _count: int) -> None:
            check_time()

        with _opened(events, is_mirror=mirror is not None) as cluster:
            # Before fences are read: where nobody answers, that is all there is to say.
            cluster.own.cluster_id()
            with of_reader(output, dsn, reader, source, choice) as request:
                if mirror is None or cluster.names is None:
                    plan = build_plan(request, cluster.broker, told)
                else:
                    # The store's, not those of a daemon on this host: what is verified is what a restore has.
                    pairs = stored_pairs(reader, mirror, source, choice.faults)
                    over = build_mirror_plan(request, cluster.own, cluster.names, pairs, told)
                    plan = over.plan
        last = choice.last[0] if choice.last else None
        return EventsSeen(plan, last, tuple(choice.faults), None if over is None else _words(over))

    return look


def _words(over: MirrorPlan) -> str:
    exact = sum(1 for one in over.partitions if one.translation.is_exact)
    lost = sum(one.unmirrored_max for one in over.tail)
    return (
        f"read from the mirror, {exact} of {len(over.partitions)} places exact, at most {lost} offsets before"
        " the newest fence not mirrored"
    )


@contextmanager
def _opened(events: EventsSettings, *, is_mirror: bool) -> Iterator[EventsCluster]:
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(open_cluster(events, is_mirror=is_mirror))
        except ConfigRefused as wrong:
            raise NotInitialised(wrong.message, detail=wrong.detail, hint=wrong.hint) from wrong
        yield cluster
