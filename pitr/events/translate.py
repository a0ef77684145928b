"""Where on the target an offset of the source is.  Pure.

What is returned is never too far: every record at or above ``upstream`` that the target holds has a copy at
or above ``lower``.  That rests on one thing: a mirror may go back and copy again, but never skips forward.
So after a settled pair (see ``sync_pairs``) come copies of all that follow its record, in however many lives
of the mirror, and so do they after the first copy of any of these.  After a pair that is not settled they
need not: the mirror may have died, and its source with it, before it had caught up.
Between pairs nothing is reckoned: offsets are not dense.  Reference: docs/events.md, "The mirror".
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from pitr.events.sync_pairs import KnownPairs, SyncPair


class Basis(StrEnum):
    """What a translated offset rests on."""

    PAIR = "pair"
    """A pair names this very record: exact."""
    IDENTITY = "identity"
    """The record before it was found by its identity: exact."""
    LOWER_BOUND = "lower bound"
    """A pair below it: safe, with records in front that replay knows already."""
    LOG_START = "log start"
    """No pair below it that may be built upon: all that the target has."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Read the target from ``lower``; ``upper`` is past the first copy of the record before, or the end.

    ``missing`` are upstream offsets [from, to) whose records the target does not hold, as far as pairs tell;
    ``is_cut`` says that the target's log begins after ``lower``, so records in between are gone.
    An exact one has no record in front that is below ``upstream``, unless the mirror went back later on.
    """

    upstream: int
    lower: int
    upper: int
    basis: Basis
    missing: tuple[int, int] | None = None
    is_cut: bool = False

    @property
    def is_exact(self) -> bool:
        return self.basis in {Basis.PAIR, Basis.IDENTITY}

    @property
    def may_search(self) -> bool:
        """Whether the first record that is alike, from ``lower`` on, is at most as far as the searched one.

        Where the log may no longer hold that one, a record that only looks like it could lie further on.
        """
        return self.basis is Basis.LOWER_BOUND and not self.is_cut and self.lower < self.upper


@dataclass(frozen=True, slots=True)
class MirrorLog:
    """A partition of the target as it is now: where its log begins and ends, and what pairs are true of it.

    ``base`` are indexes of settled pairs which no later settled one makes needless: both offsets rise.
    """

    log_start: int
    end: int
    pairs: tuple[SyncPair, ...]
    base: tuple[int, ...]

    @property
    def regressions(self) -> int:
        """How often the mirror went back, as far as pairs tell: so often are there duplicates."""
        ups = [pair.upstream for pair in self.pairs]
        return sum(later <= earlier for earlier, later in pairwise(ups))


def mirror_log(known: KnownPairs | None, *, log_start: int, end: int) -> MirrorLog:
    """Put what is known of a partition in order; ``known`` is of the target topic as it is now."""
    pairs = () if known is None else known.pairs
    if known is None or not pairs or pairs[-1].downstream >= end:
        # The target lost what a pair names: it was cut, and the last copy of a record may be an early one.
        return MirrorLog(log_start, end, (), ())
    # Before a pair at the log's start there is nothing that could be wanted.
    settled = bisect_right(pairs, max(known.settled, log_start), key=lambda pair: pair.downstream)
    base: list[int] = []
    for index in range(settled - 1, -1, -1):
        if not base or pairs[index].upstream < pairs[base[-1]].upstream:
            base.append(index)
    return MirrorLog(log_start, end, pairs, tuple(reversed(base)))


def translate(log: MirrorLog, upstream: int, *, last_offset: int | None = None) -> Translation:
    """Return where to read the target for all records at or above ``upstream`` of the source.

    ``last_offset`` is the last committed record below ``upstream`` at the source, where that is known.
    """
    found = bisect_right(log.base, upstream, key=lambda index: log.pairs[index].upstream)
    if not found:
        return _from_start(log, upstream)
    index = log.base[found - 1]
    pair = log.pairs[index]
    is_same = pair.upstream == upstream
    lower = pair.downstream + (0 if is_same else 1)
    is_exact = is_same or pair.upstream == last_offset
    return Translation(
        upstream,
        lower,
        max(lower, _upper(log, index + 1, upstream)),
        Basis.PAIR if is_exact else Basis.LOWER_BOUND,
        is_cut=lower < log.log_start,
    )


def _upper(log: MirrorLog, begin: int, upstream: int) -> int:
    """Return where a record at or past ``upstream`` first lies behind a pair: the one before lies before."""
    later = (log.pairs[index] for index in range(begin, len(log.pairs)))
    return next((pair.downstream for pair in later if pair.upstream >= upstream), log.end)


def _from_start(log: MirrorLog, upstream: int) -> Translation:
    first = min((pair.upstream for pair in log.pairs), default=None)
    upper = max(log.log_start, _upper(log, 0, upstream))
    if first is None or first <= upstream or log.pairs[0].downstream > log.log_start:
        return Translation(upstream, log.log_start, upper, Basis.LOG_START)
    # The first pair is at or below the log's start: whatever was copied before it is not there.
    return Translation(
        upstream,
        log.log_start,
        upper,
        Basis.LOG_START,
        missing=(upstream, first),
        is_cut=log.pairs[0].downstream < log.log_start,
    )


def with_found(translation: Translation, found: int) -> Translation:
    """Return the translation once the last record below ``upstream`` was first found at ``found``."""
    if not translation.may_search or not translation.lower <= found < translation.upper:
        raise ValueError(f"a record at {found} is not in what was to be searched: {translation}")
    return replace(translation, lower=found + 1, basis=Basis.IDENTITY)


def unmirrored_max(log: MirrorLog, source_end: int) -> int:
    """Return how many offsets below ``source_end`` are not known to be mirrored: at most so many records."""
    mirrored_to = max((pair.upstream + 1 for pair in log.pairs), default=0)
    return max(0, source_end - mirrored_to)
