"""Where on the target an offset of the source is.  Pure.

What is returned is never too far: every record at or above ``upstream`` that the target holds has a copy at
or above ``lower``.  That rests on one thing: a mirror may go back and copy again, but never skips forward.
So after any copy of record *u* come copies of all that follow *u*, and so many pairs as are known may be
used, in any number of lives of the mirror.  Between pairs nothing is reckoned: offsets are not dense.
Reference: docs/events.md, "The mirror".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pitr.events.sync_pairs import Epoch, SyncPair


class Basis(StrEnum):
    """What a translated offset rests on."""

    PAIR = "pair"
    """A pair names this very record: exact."""
    IDENTITY = "identity"
    """The record before it was found by its identity: exact."""
    LOWER_BOUND = "lower bound"
    """A pair below it: safe, with records in front that replay knows already."""
    LOG_START = "log start"
    """No pair at or below it: all that the target has."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Read the target from ``lower``; ``upper`` is past the searched record, or the target's end.

    ``missing`` are upstream offsets [from, to) whose records the target does not hold, as far as pairs tell;
    ``is_cut`` says that the target's log begins after ``lower``, so records in between are gone.
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


def translate(
    known: Sequence[Epoch], upstream: int, *, log_start: int, end: int, last_offset: int | None = None
) -> Translation:
    """Return where to read the target for all records at or above ``upstream`` of the source.

    ``known`` are the pairs of one partition, of the target topic as it is now; their downstream offsets rise.
    ``last_offset`` is the last committed record below ``upstream`` at the source, where that is known.
    """
    if known and known[-1].pairs[-1].downstream >= end:
        # The target lost what a pair names: it was cut, and the last copy of a record may be an early one.
        known = ()
    below, following = _around(known, upstream)
    upper = end if following is None else following.downstream
    if below is None:
        return _without_pair(following, upstream, log_start=log_start, upper=upper)
    is_same = below.upstream == upstream
    is_exact = is_same or below.upstream == last_offset
    lower = below.downstream + (0 if is_same else 1)
    basis = Basis.PAIR if is_exact else Basis.LOWER_BOUND
    return Translation(upstream, lower, max(lower, upper), basis, is_cut=lower < log_start)


def _around(known: Sequence[Epoch], upstream: int) -> tuple[SyncPair | None, SyncPair | None]:
    """Return the last pair at or below ``upstream``, and the pair after it, of whichever epoch.

    It is in the latest epoch that begins at or below ``upstream``: each epoch after that begins above.
    """
    following: SyncPair | None = None
    for epoch in reversed(known):
        if epoch.first.upstream > upstream:
            following = epoch.first
            continue
        index = bisect_right(epoch.pairs, upstream, key=lambda pair: pair.upstream)
        return epoch.pairs[index - 1], epoch.pairs[index] if index < len(epoch.pairs) else following
    return None, following


def _without_pair(first: SyncPair | None, upstream: int, *, log_start: int, upper: int) -> Translation:
    upper = max(log_start, upper)
    # A first pair at or below the log's start: whatever was copied before it is not there.
    if first is None or first.downstream > log_start:
        return Translation(upstream, log_start, upper, Basis.LOG_START)
    return Translation(
        upstream,
        log_start,
        upper,
        Basis.LOG_START,
        missing=(upstream, first.upstream),
        is_cut=first.downstream < log_start,
    )


def with_found(translation: Translation, found: int) -> Translation:
    """Return the translation once the last record below ``upstream`` was found at ``found`` of the target."""
    if not translation.may_search or not translation.lower <= found < translation.upper:
        raise ValueError(f"a record at {found} is not in what was to be searched: {translation}")
    return replace(translation, lower=found + 1, basis=Basis.IDENTITY)


def unmirrored_max(known: Sequence[Epoch], source_end: int) -> int:
    """Return how many offsets below ``source_end`` are not known to be mirrored: at most so many records."""
    mirrored_to = max((epoch.pairs[-1].upstream + 1 for epoch in known), default=0)
    return max(0, source_end - mirrored_to)
