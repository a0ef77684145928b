"""Where replayed events go, put together from a handlers file: used by a replay and by a release."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.context import App
from cli.errors import UsageRefused
from cli.events_cluster import EventsCluster
from cli.events_settings import EventsSettings
from pitr.errors import MalformedValue, NotInitialised
from pitr.events.refusals import PlanRefused

if TYPE_CHECKING:
    from pitr.events.handlers import Handlers
    from pitr.events.plan import ReplayPlan
    from pitr.events.replay_apply import Sink
    from pitr.events.upcast import Change
    from pitr.postgres.applied_events import ReplaySession

_MAKE_PLAN = "make one: pitr events plan --restored DSN --out FILE"


@dataclass(frozen=True, slots=True)
class LoadedHandlers:
    """A handlers file, and the owner's functions that it names."""

    handlers: Handlers
    calls: Mapping[str, Change]
    function: Callable[..., object] | None


def events_settings_of(app: App) -> EventsSettings:
    """Return the table [events].  Raises NotInitialised where there is none."""
    found = app.settings().events
    if found is None:
        raise NotInitialised("the configuration has no [events]", hint="see docs/events.md")
    return found


def load_handlers(named: Path | None, settings: EventsSettings) -> LoadedHandlers:
    """Read the handlers file that is named, else the configured one.  Raises ConfigRefused, UsageRefused."""
    from cli.handlers_file import load_calls, read_handlers

    path = named or settings.replay.handlers_file
    if path is None:
        raise UsageRefused(
            "nothing says what is to be done with an event",
            hint="--handlers FILE, or [events.replay] handlers_file; docs/events.md",
        )
    handlers = read_handlers(path)
    calls, function = load_calls(handlers, path.resolve().parent)
    return LoadedHandlers(handlers, calls, function)


def read_plan(path: Path) -> ReplayPlan:
    """Read a plan's file.  Raises PlanRefused for one that is not there, or is no plan."""
    from pitr.events.plan_code import PLAN_BYTES_MAX, decode_plan

    try:
        with path.open("rb") as file:
            content = file.read(PLAN_BYTES_MAX + 1)
        return decode_plan(content)
    except OSError as cause:
        raise PlanRefused(
            f"the plan {path} cannot be read", detail=cause.strerror, hint=_MAKE_PLAN
        ) from cause
    except MalformedValue as cause:
        raise PlanRefused(
            f"{path} is no plan that can be replayed", detail=cause.message, hint=_MAKE_PLAN
        ) from cause


def check_targets(handlers: Handlers, topics: Iterable[str], cluster: EventsCluster) -> None:
    """Refuse a topic that would be replayed to itself, before anything is done.  Raises UsageRefused.

    Of a mirror that is its copy, which the events are read from.
    """
    from pitr.events.handlers import SinkKind
    from pitr.events.sink_topic import target_of

    if handlers.sink is not SinkKind.TOPIC:
        return
    for topic in topics:
        try:
            if target_of(handlers.target or "", topic) == (own := cluster.own_name(topic)):
                raise MalformedValue(f"events of {own} cannot be replayed to {own} itself")
        except MalformedValue as error:
            raise UsageRefused(
                error.message, hint='[sink] topic = "{topic}.replayed" in the handlers file'
            ) from error


@contextmanager
def open_sink(
    loaded: LoadedHandlers,
    session: ReplaySession,
    cluster: EventsCluster,
    replay_id: str,
    *,
    is_dry_run: bool = False,
) -> Iterator[Sink]:
    """Open the sink that a handlers file says."""
    from pitr.events.handlers import SinkKind

    handlers = loaded.handlers
    sink: Sink
    if handlers.sink is SinkKind.SQL:
        from pitr.events.sink_sql import SqlSink

        sink = SqlSink(session, wants_headers=handlers.wants_headers)
    elif handlers.sink is SinkKind.CALLABLE:
        from pitr.events.sink_callable import CallableSink, ReplayContext

        assert loaded.function is not None, "it was imported with the file"
        context = ReplayContext(replay_id, is_dry_run, session.connection)
        sink = CallableSink(session, loaded.function, handlers.target or "", context)
    else:
        from pitr.events.kafka_producer import RECORD_BYTES_MAX
        from pitr.events.sink_topic import EventProducer, NoProducer, TopicSink

        producer: EventProducer
        if is_dry_run:
            producer = NoProducer(RECORD_BYTES_MAX)
        else:
            # A second one would end the first one's transactions: so the lock comes first.
            session.lock()
            producer = cluster.producer(replay_id)
        sink = TopicSink(
            producer, handlers.target or "", cluster.own.cluster_id(), replay_id, is_dry_run=is_dry_run
        )
    try:
        yield sink
    finally:
        sink.close()
