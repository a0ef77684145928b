"""Which moment is verified: the latest, a given one, or one drawn at random that nobody could choose.  Pure.

For a random moment a seed is drawn and the SHA-256 of it logged before anything runs, together with the
stretches of time that could be restored; the report then tells the seed.  ``random_moment`` maps the one to
the other, so that whoever has the log and the report can compute the moment again, with these few lines:

    n = the first 8 bytes of SHA-256("pitr/v1/random-target" 0x00 SEED 0x00 STRETCHES), as a big-endian number
    n modulo the number of microseconds in all stretches, counted through them in their order

SEED is the 64 hexadecimal digits, STRETCHES the text as logged: ``FROM/TO`` joined by ``;``, both ends
included, times as in all records.  Reference: docs/verify.md, "A random moment".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pitr.errors import MalformedValue, TargetRefused
from pitr.pipeline.sign import decode_time, encode_time

STRETCHES_MAX: Final = 64
_MICROSECOND: Final = timedelta(microseconds=1)
_SEED: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Moments that can be restored, both ends included."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise MalformedValue(f"a stretch from {self.start} to {self.end}")

    @property
    def moments(self) -> int:
        """How many microseconds it has."""
        return (self.end - self.start) // _MICROSECOND + 1

    def __str__(self) -> str:
        return f"{encode_time(self.start)}/{encode_time(self.end)}"

    @classmethod
    def parse(cls, text: str) -> Stretch:
        """Read ``FROM/TO``.  Raises MalformedValue."""
        start, _, end = text.partition("/")
        return cls(decode_time(start), decode_time(end))


def merge(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """Return the same moments in stretches that do not meet, in order; the newest STRETCHES_MAX of them."""
    merged: list[Stretch] = []
    for one in sorted(stretches, key=lambda each: each.start):
        if merged and one.start <= merged[-1].end + _MICROSECOND:
            merged[-1] = Stretch(merged[-1].start, max(merged[-1].end, one.end))
        else:
            merged.append(one)
    return tuple(merged[-STRETCHES_MAX:])


def stretches_text(stretches: Sequence[Stretch]) -> str:
    """Return the text that is logged."""
    return ";".join(map(str, stretches))


def parse_stretches(text: str) -> tuple[Stretch, ...]:
    """Read the logged text.  Raises MalformedValue."""
    return tuple(Stretch.parse(part) for part in text.split(";"))


def seed_sha256(seed: str) -> str:
    """Return what is logged before the run: the digest of the 32 bytes that the seed's digits stand for."""
    if _SEED.fullmatch(seed) is None:
        raise MalformedValue("a seed has 64 lower-case hexadecimal digits")
    return hashlib.sha256(bytes.fromhex(seed)).hexdigest()


def random_moment(seed: str, stretches: Sequence[Stretch]) -> datetime:
    """Return the moment that a seed means; always the same one.  Raises TargetRefused without a stretch."""
    seed_sha256(seed)
    if not stretches:
        raise TargetRefused("no moment can be restored, so none can be drawn", hint="pitr timeline")
    mark = (
        b"pitr/v1/random-target\0" + seed.encode("ascii") + b"\0" + stretches_text(stretches).encode("ascii")
    )
    number = int.from_bytes(hashlib.sha256(mark).digest()[:8], "big")
    number %= sum(one.moments for one in stretches)
    for one in stretches:
        if number < one.moments:
            return one.start + number * _MICROSECOND
        number -= one.moments
    raise AssertionError("the number is below the sum")
