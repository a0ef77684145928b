"""What a plan of replay is made from: a restored server, or a moment and the archive alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from cli.events_fences import SignedFences, beside_branches, history_of, later_branches, way_in
from cli.reading import Source, choose_archive, open_source
from pitr.datakeys import DataKeys
from pitr.errors import KeyMissing, PitrError, ServerRefused, TargetRefused
from pitr.events.classify import Lineage
from pitr.events.fence_choice import JudgedRow, RowState, judge_last, judge_row
from pitr.events.fence_sieve import Sieve, Sifted
from pitr.events.fence_store import FenceReader
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.forks import branches_of, narrow, narrow_beside
from pitr.events.history import XactStatus
from pitr.events.plan_build import PlanRequest
from pitr.events.restored import NUMBER_MAX, RestoredDatabase
from pitr.layout import ArchiveId
from pitr.postgres.restored_history import RestoredServer
from pitr.survey import ArchiveSurvey

if TYPE_CHECKING:
    from cli.context import App
    from cli.output import Output
    from cli.wiring import Reader
    from pitr.events.fence import Fence
    from pitr.events.history import Branch, OwnLine
    from pitr.recovery import RecoveryTarget
    from pitr.wal_runs import WalSpan

Statuses = Mapping[int, XactStatus]
Asks = Callable[[Sequence[int]], Statuses]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for; ``faults`` is what is wrong with fences that were read."""

    declarations: Sequence[FlowDeclaration]
    look_back: timedelta
    faults: list[str] = field(default_factory=list)
    last: list[JudgedRow] = field(default_factory=list)
    """The restored database's last fence, one at most: what was found by query, beside its signed copy."""


@contextmanager
def of_server(app: App, dsn: str, source: Source, choice: Choice) -> Iterator[PlanRequest]:
    """Yield a request with a restored server at hand, which answers until the plan is made.

    Raises ServerRefused, ServerUnavailable, and with an identity what reading the store raises.
    """
    if source.identity_path is None:
        with of_reader(app.output, dsn, None, source, choice) as request:
            yield request
        return
    with open_source(app, source) as reader, of_reader(app.output, dsn, reader, source, choice) as request:
        yield request


@contextmanager
def of_reader(
    output: Output, dsn: str, reader: Reader | None, source: Source, choice: Choice
) -> Iterator[PlanRequest]:
    """Yield the same from a repository that is open; None: from the database's own rows of fences."""
    with RestoredServer(dsn) as server:
        database = RestoredDatabase(server)
        facts = database.facts
        cursors = {
            one.topic: database.cursor(one.cursor_sql)
            for one in choice.declarations
            if one.flow is Flow.SINK_CURSOR and one.cursor_sql is not None
        }
        lineage = Lineage(branches_of(facts.history), facts.end, facts.fork_xid)
        if reader is None:
            output.warn(
                "fences are the database's own rows, not compared with signed copies, and timelines beside"
                " its own are not known: no --identity"
            )
            sifted = _sifted(choice, lineage, facts.system_identifier, database.statuses, database.fences())
            choice.faults.extend(database.unreadable)
        else:
            archive, signed = _signed(reader, source, choice)
            if archive.system_identifier != facts.system_identifier:
                raise TargetRefused(
                    f"the server was not restored from archive {archive}",
                    detail=f"its system identifier is {facts.system_identifier}",
                    hint="name the archive with --archive, or the right server",
                )
            lineage, way = _with_others(output, reader, source, lineage)
            if way:
                fences = signed.on_way(way, lineage.end)
            else:
                fences = signed.downwards(archive, lineage.timeline, lineage.end)
            sifted = _sifted(choice, lineage, facts.system_identifier, database.statuses, fences)
            _compare(server, sifted, choice)
        request = _request(choice, lineage, facts.system_identifier, sifted, database.statuses, cursors, None)
        yield replace(request, own_line=partial(_own_line, output, database, choice.declarations, cursors))


@contextmanager
def of_moment(
    app: App,
    target: RecoveryTarget,
    source: Source,
    choice: Choice,
    backup_id: str | None,
    damaged: tuple[str, ...],
) -> Iterator[PlanRequest]:
    """Yield a request from the archive alone: what only a database knows is unknown.

    Raises KeyMissing without an identity, TargetRefused, NotAuthentic, StoreError.
    """
    from cli.planning import look, plan_from

    with open_source(app, source) as reader:
        if reader.identity is None:
            raise KeyMissing(
                "fences are sealed: only an identity opens them", hint="give it with --identity FILE"
            )
        looked = look(reader, source, app.output, without=damaged)
        plan = plan_from(looked, reader, source, target, app.output, backup_id=backup_id)
        end = plan.wal_end if plan.stop is None else plan.stop.replay_end
        way = [one for one in way_in(looked.survey, plan.timeline) if one.start < end]
        branches = branches_of(history_of(way))
        later = later_branches(looked.survey, branches, end)
        beside = beside_branches(looked.survey, plan.timeline, later)
        lineage = Lineage(branches, end, None, later, beside)
        _, signed = _signed(reader, source, choice)
        system = plan.archive.system_identifier
        sifted = _sifted(choice, lineage, system, _knows_nothing, signed.on_way(way, end))
        moment = target.instant
    yield _request(choice, lineage, system, sifted, _knows_nothing, None, moment)


def _own_line(
    output: Output,
    database: RestoredDatabase,
    declarations: Sequence[FlowDeclaration],
    cursors: Mapping[str, Mapping[int, int]],
) -> OwnLine | None:
    """Return what clients have done in the restored server by now.  Raises ServerRefused if a sink works."""
    for one in declarations:
        before = cursors.get(one.topic)
        if before is None or one.cursor_sql is None:
            continue
        if database.cursor(one.cursor_sql) != before:
            raise ServerRefused(
                f"the sink of topic {one.topic} works in the restored server",
                detail="its cursor moved while the plan was made",
                hint="stop it until the replay is done, and make the plan again",
            )
    line = database.own_line()
    if line is not None:
        output.warn(
            f"clients have committed {line.count} transactions in the restored server since its promotion:"
            " where an event does not say which of the two timelines it is of, it may be unknown"
        )
    return line


def _knows_nothing(_xids: Sequence[int]) -> Statuses:
    return {}


def _signed(reader: Reader, source: Source, choice: Choice) -> tuple[ArchiveId, SignedFences]:
    if reader.identity is None:
        raise KeyMissing(
            "fences are sealed: only an identity opens them", hint="give it with --identity FILE"
        )
    keys = DataKeys(reader.repository, reader.identity.identity)
    archive = choose_archive(reader.repository, source.archive)
    return archive, SignedFences(FenceReader(reader.repository), keys, choice.faults)


def _with_others(
    output: Output, reader: Reader, source: Source, lineage: Lineage
) -> tuple[Lineage, Sequence[WalSpan]]:
    """Return the lineage with what followed the restored point or lies beside the way there, and the way.

    As far as the archive can be surveyed; what is not known is said, a way that is not is empty.
    """
    from cli.planning import look

    way: Sequence[WalSpan] = ()
    beside: tuple[Branch, ...] = ()
    try:
        survey: ArchiveSurvey = look(reader, source, output).survey
    except PitrError as wrong:
        output.warn(f"what followed the restored point is not known: {wrong}")
        return lineage, way
    later = later_branches(survey, lineage.branches, lineage.end)
    try:
        way = [one for one in way_in(survey, lineage.timeline) if one.start < lineage.end]
        beside = beside_branches(survey, lineage.timeline, later)
    except PitrError as wrong:
        output.warn(f"which timelines lie beside the restored one is not known: {wrong}")
    return replace(lineage, later=later, beside=beside), way


def _sifted(choice: Choice, lineage: Lineage, system: int, ask: Asks, fences: Iterable[Fence]) -> Sifted:
    return Sieve(choice.declarations, lineage, system, ask, choice.look_back).sift(fences)


def _request(
    choice: Choice,
    lineage: Lineage,
    system: int,
    sifted: Sifted,
    ask: Asks,
    cursors: Mapping[str, Mapping[int, int]] | None,
    moment: datetime | None,
) -> PlanRequest:
    branches = narrow((*lineage.branches, *lineage.later), sifted.marks)
    count = len(lineage.branches)
    beside = narrow_beside(lineage.beside, branches, sifted.marks)
    exact = Lineage(branches[:count], lineage.end, lineage.fork_xid, branches[count:], beside)
    return PlanRequest(
        choice.declarations, system, exact, sifted.view, ask, cursors, moment, choice.look_back
    )


def _compare(server: RestoredServer, sifted: Sifted, choice: Choice) -> None:
    """Compare the signed fences that count with the database's rows; the signed ones are used anyhow."""
    inside = sifted.view.inside
    newest = server.fence_rows(NUMBER_MAX, 1)
    last = judge_last(newest[0] if newest else None, inside[0] if inside else None)
    if last is not None:
        choice.last.append(last)
        if last.state is RowState.GONE:
            choice.faults.append(last.detail or "the last fence's row is gone")
    for fence in inside:
        number = fence.mark.number
        rows = server.fence_rows(number + 1, 1)
        if not rows or rows[0][0] != number:
            continue
        judged = judge_row(number, rows[0][1], {number: fence})
        if judged.state is not RowState.SIGNED:
            choice.faults.append(f"row {number} of pitr.fence is not what was signed: {judged.detail}")
