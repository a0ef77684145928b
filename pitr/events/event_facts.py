"""Who an event is: its id, type, version, and which transaction of which timeline wrote it.  Pure.

An event is a stranger's bytes.  What cannot be read is no fact, and ``problem`` says what it was: nothing is
guessed from half a header.  Reference: docs/events.md, "What an event says of itself".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pitr.errors import MalformedValue
from pitr.events.broker import EventRecord
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

TEXT_CHARS_MAX = 256
VERSION_MAX = 1_000_000
# 0 to 2 are PostgreSQL's own: no transaction that writes an event has them.
XID_MIN = 3
XID_MAX = (1 << 63) - 1
_DIGITS_MAX = 19
# A header in the JSON converter's wrapping holds its schema too.
_WRAPPED_BYTES_MAX = 64 << 10
_ZERO = ord("0")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class EventFacts:
    """What an event says of itself; None is what it does not say.

    ``xid`` is 64 bits wide if ``is_xid_wide``, else its low 32 bits, as logical decoding has it.  ``lsn`` is
    a position not after the transaction's commit record, ``commit_lsn`` that of the commit record itself.
    ``problem``: something in it could not be read, and whoever applies it must not.  ``is_tombstone``: it
    has no value, and by its format that tells nobody but compaction anything: another event said it before.
    """

    event_id: str | None = None
    type: str | None = None
    version: int = 1
    xid: int | None = None
    is_xid_wide: bool = True
    timeline: TimelineId | None = None
    lsn: LSN | None = None
    commit_lsn: LSN | None = None
    principal: str | None = None
    is_tombstone: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class HeaderNames:
    """How the headers of one format are called."""

    event_id: str = "event-id"
    type: str = "event-type"
    version: str = "event-version"
    xid: str = "pg-xid"
    timeline: str = "pg-tl"
    lsn: str = "pg-lsn"
    commit_lsn: str = "pg-commit-lsn"
    principal: str = "principal"


class HeaderReader:
    """Reads headers, and keeps the first thing that could not be read.  One is made for each event."""

    __slots__ = ("_found", "problem")

    def __init__(self, record: EventRecord) -> None:
        self.problem: str | None = record.unreadable
        # A later header of one name wins, as with Kafka's own clients.
        self._found: Mapping[str, bytes | None] = dict(record.headers)

    def text(self, name: str) -> str | None:
        """Return a header's text; None if it is absent or unreadable."""
        raw = self._raw(name)
        if raw is None:
            return None
        try:
            text = raw[: 4 * TEXT_CHARS_MAX + 1].decode("utf-8")
        except UnicodeDecodeError:
            self._refuse(name, "is not UTF-8")
            return None
        # What is printable has no control characters, and that is seen ten times as fast.
        if not 0 < len(text) <= TEXT_CHARS_MAX or (not text.isprintable() and _CONTROL.search(text)):
            self._refuse(name, f"is empty, over {TEXT_CHARS_MAX} characters or has control characters")
            return None
        return text

    def number(self, name: str, least: int, most: int) -> int | None:
        """Return a header's decimal number; None if it is absent or unreadable."""
        raw = self._raw(name)
        if raw is None:
            return None
        try:
            found = _decimal(raw)
        except MalformedValue:
            found = least - 1
        if least <= found <= most:
            return found
        self._refuse(name, f"is not a number from {least} to {most}")
        return None

    def timeline(self, name: str) -> TimelineId | None:
        """Return a header's timeline: eight hexadecimal digits, as in a WAL file's name, or decimal."""
        raw = self._raw(name)
        if raw is None:
            return None
        try:
            return _timeline(raw)
        except (MalformedValue, ValueError):
            self._refuse(name, "is not a timeline")
            return None

    def lsn(self, name: str) -> LSN | None:
        """Return a header's LSN; None if it is absent or unreadable."""
        text = self.text(name) if name in self._found else None
        if text is None:
            return None
        try:
            return LSN.parse(text)
        except MalformedValue:
            self._refuse(name, "is not an LSN")
            return None

    def _raw(self, name: str) -> bytes | None:
        """Return a header's bytes, out of what Connect's JSON converter puts around them."""
        raw = self._found.get(name)
        return _unwrapped(raw) if raw is not None and raw[:1] in (b'"', b"{") else raw

    def _refuse(self, name: str, what: str) -> None:
        self.problem = self.problem or f"header {name} {what}"


def _unwrapped(raw: bytes) -> bytes | None:
    """Return the text of a header in quotes, or in ``{"schema": …, "payload": …}``; else the bytes.

    Connect's own header converter writes neither, its JSON converter the one or the other.
    """
    if len(raw) > _WRAPPED_BYTES_MAX:
        return raw
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    if isinstance(found, dict) and found.keys() == {"schema", "payload"}:
        found = found["payload"]
        if found is None:
            return None
    if isinstance(found, str):
        return found.encode("utf-8", "surrogatepass")
    return str(found).encode() if isinstance(found, int) and not isinstance(found, bool) else raw


def _decimal(raw: bytes) -> int:
    """Return a number that is written in the one way that there is, in at most 19 digits."""
    if not raw.isdigit() or len(raw) > _DIGITS_MAX or (raw[0] == _ZERO and len(raw) > 1):
        raise MalformedValue("not a decimal number")
    return int(raw)


# Nearly all events of a batch are of one timeline.
@lru_cache(maxsize=64)
def _timeline(raw: bytes) -> TimelineId:
    return TimelineId.parse(raw.decode("ascii")) if len(raw) == 8 else TimelineId(_decimal(raw))


_NAMES = HeaderNames()


def read_headers(record: EventRecord, names: HeaderNames | None = None) -> EventFacts:
    """Return what the headers say."""
    names = names or _NAMES
    reader = HeaderReader(record)
    version = reader.number(names.version, 1, VERSION_MAX)
    found = EventFacts(
        event_id=reader.text(names.event_id),
        type=reader.text(names.type),
        version=1 if version is None else version,
        xid=reader.number(names.xid, XID_MIN, XID_MAX),
        timeline=reader.timeline(names.timeline),
        lsn=reader.lsn(names.lsn),
        commit_lsn=reader.lsn(names.commit_lsn),
        principal=reader.text(names.principal),
    )
    return found if reader.problem is None else _with_problem(found, reader.problem)


def _with_problem(found: EventFacts, problem: str) -> EventFacts:
    # A transaction of which one part could not be read is no transaction: the rest might be another's.
    return EventFacts(
        event_id=found.event_id,
        type=found.type,
        version=found.version,
        principal=found.principal,
        problem=problem,
    )
