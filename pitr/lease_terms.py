"""When a lease may be taken: its length, who is told of, who is dead.  Pure.

Clocks of two hosts differ.  A taker waits ``skew_s`` longer than the record says; where its clock is wrong
by more it takes a lease that is held, and then the newer number fences the holder: a backup is lost, and
none is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pitr.catalogue.lease_record import Holder, LeaseRecord


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """A lease lasts ``length_s``, renewed each ``renew_s``; ``skew_s`` is how far two clocks may be apart."""

    length_s: float = 600.0
    renew_s: float = 120.0
    skew_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.renew_s < self.length_s or self.skew_s < 0:
            raise ValueError("a lease is renewed before it ends")


def held_until(newest: LeaseRecord | None, own: Holder, terms: LeaseTerms, now: datetime) -> datetime | None:
    """Return until when somebody else holds the lease; None if ``own`` may take it now.

    A record that was taken later than a lease from now is by a clock that is wrong, ours or its writer's, and
    bars nobody: a clock that once was years ahead does not end all backups.
    """
    if newest is None or newest.is_released:
        return None
    if (newest.holder.host, newest.holder.place) == (own.host, own.place):
        return None
    length = timedelta(seconds=terms.length_s)
    skew = timedelta(seconds=terms.skew_s)
    if newest.taken_at > now + length + skew:
        return None
    until = newest.until_at + skew
    return until if until > now else None
