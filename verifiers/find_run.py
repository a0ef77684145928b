"""The search for the last good moment: between one at which a query says true and one at which it does not.

First the WAL between the two is halved until what is left can be read, then the transactions in it are
bisected; at the end both sides of the one that is found have been looked at.  Nothing is written but in the
scratch place, which the caller wipes.  Reference: docs/find.md.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pitr.errors import PitrError, TargetRefused
from pitr.postgres.yes_no import Answer, AnswerKind, Question, QuestionBlocked, ask
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.restore_request import Progress
from pitr.wal.changes import RelationFile, Standing
from pitr.wal.lsn import LSN
from pitr.wal.records import WalRecord, iter_records
from pitr.wal.transactions import TransactionEnd
from pitr.wal_walk import ReadWal, WalWalk
from verifiers.find_commits import (
    Candidates,
    Deed,
    TooManyCommits,
    find_commit,
    is_before,
    read_candidates,
    read_deed,
)
from verifiers.find_question import check_question
from verifiers.find_search import Bisection, probes_max
from verifiers.find_stage import Stage, StageSetting, StageTally
from verifiers.verify_values import DeadlinePassed

# To read and to sort so much WAL takes about as long as one look at the server.
READ_BYTES_MAX: Final = 1 << 30
PROBES_MAX: Final = 64
_SIDES: Final = 2
# A snapshot does not tell of a transaction that runs and is newer than the last one that ended.
_MARGIN_BYTES: Final = 16 << 20


class NothingFound(PitrError):
    """The answer changed, and no transaction between is what changed it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One look: where, how the server came there, and what the query said."""

    number: int
    target: RecoveryTarget
    lsn: LSN
    way: str
    is_good: bool
    answer: str
    seconds: float


@dataclass(frozen=True, slots=True)
class FindRequest:
    """What to look for.  ``is_error_healthy``: a query that fails counts as true."""

    setting: StageSetting
    read_wal: ReadWal
    question: Question
    first: RecoveryTarget
    last: RecoveryTarget
    deadline_s: float
    is_error_healthy: bool = False
    read_bytes_max: int = READ_BYTES_MAX


@dataclass(slots=True)
class Found:
    """What a search found.  ``plan`` leads to the last good moment, before the transaction of ``deed``."""

    plan: RestorePlan
    deed: Deed
    names: Mapping[RelationFile, str]
    probes: list[Probe]
    tally: StageTally
    candidates: int
    all_commits: int
    is_cut_off: bool


@dataclass(frozen=True, slots=True)
class _State:
    """A state that was looked at: between which LSNs of WAL it lies, and what was told there."""

    target: RecoveryTarget
    at: LSN
    standing: Standing | None


@dataclass(frozen=True, slots=True)
class Told:
    """How far a search is, for whoever waits."""

    number: int
    at_most: int | None
    words: str


class Search:
    """One search.  ``on_progress`` is called from several threads, ``tell`` before and after each look."""

    def __init__(
        self,
        request: FindRequest,
        *,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        tell: Callable[[Told], None] = lambda _told: None,
        cancel: threading.Event | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._on_progress = on_progress
        self._tell = tell
        self._cancel = cancel or threading.Event()
        self._monotonic = monotonic
        self._deadline = monotonic() + request.deadline_s
        self._stage = Stage(
            request.setting, on_progress=self._watch, cancel=self._cancel, monotonic=monotonic
        )
        self._probes: list[Probe] = []
        self._at_most: int | None = None
        self._names: dict[RelationFile, str] = {}
        self._wide: RestorePlan | None = None

    def run(self) -> Found:
        """Search.  Raises TargetRefused if it is not good first and bad last, NothingFound, QuestionRefused,
        QuestionTooSlow, DeadlinePassed, and as a restore does.
        """
        try:
            check_question(self._request.setting, self._request.question)
            good, bad = self._ends()
            return self._search(good, bad)
        finally:
            self._stage.close()

    # -- the two ends

    def _ends(self) -> tuple[_State, _State]:
        request = self._request
        plan_to = request.setting.plan_to
        last = plan_to(request.last, None)
        first_target = replace(request.first, timeline=last.timeline)
        first = plan_to(first_target, None)
        assert first.stop is not None, "they were resolved"
        assert last.stop is not None, "they were resolved"
        if first.stop.replay_end >= last.stop.replay_end:
            raise TargetRefused(
                "no WAL lies between --from and --to",
                detail=f"recovery would stop at {first.stop.replay_end} and at {last.stop.replay_end}",
                hint="name a later --to",
            )
        # All that lies between must be on one way from one backup: it is read, and walked over.
        self._wide = plan_to(request.last, first.backup.backup)
        good, is_good, answer = self._look(first_target)
        if not is_good:
            raise TargetRefused(
                "the data is not healthy at --from already",
                detail=f"at {first.stop.replay_end}: {answer}",
                hint="name an earlier --from, or look at the query: it must return true while all is well",
            )
        self._stage.note_good()
        bad, is_good, answer = self._look(request.last)
        if is_good:
            raise TargetRefused(
                "the data is still healthy at --to",
                detail=f"at {last.stop.replay_end}: {answer}",
                hint="name a later --to, such as latest, or look at the query: it must not return true then",
            )
        return good, bad

    # -- the search

    def _search(self, good: _State, bad: _State) -> Found:
        is_filtered = True
        while True:
            good, bad = self._halve(good, bad)
            try:
                found = self._read(good, bad, good.standing if is_filtered else None)
            except TooManyCommits as cause:
                narrower = self._split(good, bad)
                if narrower == (good, bad):
                    raise NothingFound(
                        "too many transactions in one WAL segment", detail=f"between {good.at} and {bad.at}"
                    ) from cause
                good, bad = narrower
                continue
            if not len(found):
                if not is_filtered or not found.all_commits:
                    raise NothingFound(
                        "the answer changed, and no transaction did that",
                        detail=f"none ended between {good.at} and {bad.at}",
                        hint="does the query look at the clock, or at a sequence?",
                    )
                is_filtered = False
                continue
            begin = good
            start, good, bad = self._bisect(found, good, bad)
            if start is not None:
                return self._found(start, begin, bad, found)
            # One of those that were passed over did it.
            is_filtered = False

    def _bisect(self, found: Candidates, good: _State, bad: _State) -> tuple[LSN | None, _State, _State]:
        """Return the commit that did it, with both its sides; None if it is one that was passed over."""
        search = Bisection(found.suspicion)
        self._at_most = len(self._probes) + probes_max(len(found)) + _SIDES
        while search.found is None:
            state = search.next()
            here, is_good, _ = self._look(_before(LSN(found.starts[state]), good.target))
            search.note(state, is_good=is_good)
            if is_good:
                self._stage.note_good()
                good = here
            else:
                bad = here
        number = search.found
        start = LSN(found.starts[number])
        if number == 0 and found.is_preceded:
            here, is_good, _ = self._look(_before(start, good.target))
            if not is_good:
                return None, good, here
            self._stage.note_good()
            good = here
        if found.is_followed[number]:
            after = RecoveryTarget("lsn", lsn=start, timeline=good.target.timeline)
            here, is_good, _ = self._look(after)
            if is_good:
                self._stage.note_good()
                return None, here, bad
            bad = here
        return start, good, bad

    def _halve(self, good: _State, bad: _State) -> tuple[_State, _State]:
        """Look in the middle of the WAL until what lies between can be read."""
        while bad.at - good.at > self._request.read_bytes_max:
            narrower = self._split(good, bad)
            if narrower == (good, bad):
                break
            good, bad = narrower
        return good, bad

    def _split(self, good: _State, bad: _State) -> tuple[_State, _State]:
        """Look once, in the middle of the WAL between; the same states where no unit ends between."""
        assert self._wide is not None, "it was planned first"
        inner = [link.start for link in self._wide.links if good.at < link.start < bad.at]
        if not inner:
            return good, bad
        middle = LSN((good.at.offset + bad.at.offset) // 2)
        at = inner[min(bisect_left(inner, middle), len(inner) - 1)]
        here, is_good, _ = self._look(_before(at, good.target))
        if is_good:
            self._stage.note_good()
            return here, bad
        return good, here

    def _read(self, good: _State, bad: _State, standing: Standing | None) -> Candidates:
        return read_candidates(self._records(good.at, bad.at), good.at, bad.at, standing)

    def _records(self, since: LSN, until: LSN) -> Iterator[WalRecord]:
        assert self._wide is not None, "it was planned first"
        walk = WalWalk(self._wide, self._request.read_wal)
        for record in iter_records(walk.chunks(since, until), segment_bytes=walk.segment_bytes):
            self._check_time()
            yield record

    # -- one look

    def _look(self, target: RecoveryTarget) -> tuple[_State, bool, str]:
        self._check_time()
        number = len(self._probes) + 1
        if number > PROBES_MAX:
            raise NothingFound(f"no answer after {PROBES_MAX} looks", hint="narrow --from and --to")
        self._tell(Told(number, self._at_most, f"to {target}"))
        begun = self._monotonic()
        instance, plan, way = self._stage.go(target)
        self._check_time()
        request = self._request
        superuser = request.setting.superuser
        try:
            answer = ask(instance.dsn, request.question, superuser=superuser)
        except QuestionBlocked:
            # A transaction that has not ended here, such as a DROP, has the table: it never will have ended.
            self._stage.open()
            answer = ask(instance.dsn, request.question, superuser=superuser)
        is_good = self._judge(answer)
        assert plan.stop is not None, "it was restored to it"
        at = plan.stop.replay_end
        seconds = self._monotonic() - begun
        self._probes.append(Probe(number, target, at, str(way), is_good, answer.words, seconds))
        if answer.standing is not None:
            self._names |= answer.standing.names
        self._tell(Told(number, self._at_most, f"{'healthy' if is_good else 'not healthy'}: {answer.words}"))
        return _State(target, at, answer.standing), is_good, answer.words

    def _judge(self, answer: Answer) -> bool:
        if answer.kind is AnswerKind.ERROR:
            return self._request.is_error_healthy
        return answer.kind is AnswerKind.YES

    # -- the end

    def _found(self, start: LSN, begin: _State, bad: _State, candidates: Candidates) -> Found:
        """Return what the search comes to; ``begin`` is the good state from which WAL was read."""
        end, subtransactions = find_commit(self._records(start, bad.at), start)
        plan = self._request.setting.plan_to(_before(start, begin.target), None)
        return Found(
            plan=plan,
            deed=self._deed(end, subtransactions, begin),
            names=self._names,
            probes=self._probes,
            tally=self._stage.tally,
            candidates=len(candidates),
            all_commits=candidates.all_commits,
            is_cut_off=self._stage.is_cut_off,
        )

    def _deed(self, end: TransactionEnd, subtransactions: tuple[int, ...], begin: _State) -> Deed:
        """Read what the transaction did, with WAL from before the state where it may have run already."""
        assert self._wide is not None, "it was planned first"
        first = self._wide.links[0].start.offset
        is_older = begin.standing is None or is_before(end.xid, begin.standing.next_xid)
        earlier = (
            end.start.offset - self._request.read_bytes_max if is_older else begin.at.offset - _MARGIN_BYTES
        )
        since = LSN(max(first, min(earlier, begin.at.offset)))
        deed = read_deed(self._records(since, end.end), since, end, subtransactions)
        return replace(deed, is_complete=deed.is_complete and not is_older)

    # -- time

    def _watch(self, progress: Progress) -> None:
        self._check_time()
        self._on_progress(progress)

    def _check_time(self) -> None:
        if self._cancel.is_set():
            raise DeadlinePassed("the search was cancelled")
        if self._monotonic() > self._deadline:
            raise DeadlinePassed(
                f"the search took longer than {self._request.deadline_s:g} s",
                detail=f"{len(self._probes)} looks were taken",
                hint="give it more time: --deadline DURATION; or narrow --from and --to",
            )


def _before(lsn: LSN, like: RecoveryTarget) -> RecoveryTarget:
    return RecoveryTarget("lsn", lsn=lsn, is_inclusive=False, timeline=like.timeline)
