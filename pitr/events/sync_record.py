"""Objects of pairs: the signed header, and the text that is sealed.  Pure.

An object holds either the whole book of pairs, or what came after the object before it; ``whole`` names the
object that a reader begins with.  Reference: docs/format.md §6.10.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload, archive_fields
from pitr.errors import MalformedValue
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import JournalEntry, KnownPairs, SyncPair, add_pairs
from pitr.layout import ArchiveId
from pitr.pipeline.seal import Context
from pitr.pipeline.sign import encode_time

KIND: Final = "syncs"
WHOLE_EVERY: Final = 100
"""So many objects may follow a whole one: what a reader reads at most."""
WHOLE_LIFE: Final = timedelta(days=1)
"""A whole one is put again: the key of an old one ends with the WAL of its hour."""
LINES_MAX: Final = 60_000
_BOOK: Final = re.compile(r"[0-9a-f]{32}")
_TOPIC_ID_CHARS_MAX: Final = 64
_SEPARATORS: Final = (",", ":")


@dataclass(frozen=True, slots=True)
class SyncsHeader:
    """Object ``sequence`` (from 1); ``previous`` is the SHA-256 of the header before it.

    ``upto`` is the last entry of the journal of ``book`` that is in this object or one before it.
    """

    repository: str
    archive: ArchiveId
    sequence: int
    previous: bytes | None
    whole: int
    whole_at: datetime
    book: str
    upto: int
    key_id: bytes

    def __post_init__(self) -> None:
        if self.sequence < 1 or (self.sequence == 1) != (self.previous is None):
            raise MalformedValue(f"syncs {self.sequence}: only the first object has no predecessor")
        if not 0 <= self.sequence - self.whole <= WHOLE_EVERY:
            raise MalformedValue(f"syncs {self.sequence}: a whole object is at most {WHOLE_EVERY} before")
        if _BOOK.fullmatch(self.book) is None:
            raise MalformedValue(f"syncs {self.sequence}: not the id of a book")

    @property
    def is_whole(self) -> bool:
        return self.whole == self.sequence

    @property
    def context(self) -> Context:
        """The context that the body is sealed in."""
        return Context(self.repository, self.archive, KIND, str(self.sequence))

    def to_payload(self) -> Payload:
        return {
            **archive_fields(KIND, self.repository, self.archive),
            "sequence": self.sequence,
            "previous": None if self.previous is None else self.previous.hex(),
            "whole": self.whole,
            "whole_at": encode_time(self.whole_at),
            "book": self.book,
            "upto": self.upto,
            "key_id": self.key_id.hex(),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> SyncsHeader:
        fields = Fields(payload, KIND)
        return cls(
            fields.repository(),
            fields.archive(),
            fields.integer("sequence", least=1),
            fields.optional("previous", fields.digest),
            fields.integer("whole", least=1),
            fields.time("whole_at"),
            fields.text("book"),
            fields.integer("upto"),
            fields.key_id("key_id"),
        )


@dataclass(frozen=True, slots=True)
class SyncsLine:
    """Pairs of one partition of the source; ``is_reset``: whatever was known of it before is void.

    ``settled`` is as in ``KnownPairs``, of these and of those before.
    """

    at: TopicPartition
    topic_id: str
    is_reset: bool
    settled: int
    pairs: tuple[SyncPair, ...]


def journal_lines(entries: Iterable[JournalEntry]) -> tuple[SyncsLine, ...]:
    """Return a journal's entries by partition."""
    resets: set[TopicPartition] = set()
    pairs: dict[TopicPartition, list[SyncPair]] = {}
    last: dict[TopicPartition, JournalEntry] = {}
    for entry in entries:
        before = last.get(entry.at)
        if entry.pair is None or (before is not None and before.topic_id != entry.topic_id):
            resets.add(entry.at)
            pairs[entry.at] = []
        of_it = pairs.setdefault(entry.at, [])
        # The last pair is noted again where it only became settled.
        if entry.pair is not None and of_it[-1:] != [entry.pair]:
            of_it.append(entry.pair)
        last[entry.at] = entry
    return tuple(
        SyncsLine(at, last[at].topic_id, at in resets, last[at].settled, tuple(pairs[at]))
        for at in sorted(last)
    )


def whole_lines(known: Mapping[TopicPartition, KnownPairs]) -> tuple[SyncsLine, ...]:
    """Return a whole book's partitions."""
    return tuple(
        SyncsLine(at, one.topic_id, True, one.settled, one.pairs) for at, one in sorted(known.items())
    )


def fold(known: dict[TopicPartition, KnownPairs], lines: Iterable[SyncsLine]) -> None:
    """Add what the next object says to what is known from those before it."""
    for line in lines:
        before = known.get(line.at)
        is_same = before is not None and before.topic_id == line.topic_id and not line.is_reset
        pairs = before.pairs if before is not None and is_same else ()
        known[line.at] = KnownPairs(line.topic_id, add_pairs(pairs, line.pairs), line.settled)


def encode_lines(alias: str, lines: Sequence[SyncsLine]) -> bytes:
    """Return the text that is sealed: the mirror's alias of its source, then a line for each partition.

    Offsets are written as differences: those of a busy partition are long numbers that hardly differ.
    """
    texts = [json.dumps({"source": alias}, separators=_SEPARATORS)]
    texts += map(_encode_line, lines)
    return "\n".join(texts).encode("ascii")


def _encode_line(line: SyncsLine) -> str:
    offsets: list[int] = []
    last = SyncPair(0, 0)
    for pair in line.pairs:
        offsets += (pair.upstream - last.upstream, pair.downstream - last.downstream)
        last = pair
    fields = {
        "topic": line.at.topic,
        "partition": line.at.partition,
        "topic_id": line.topic_id,
        "is_reset": line.is_reset,
        "settled": line.settled,
        "pairs": offsets,
    }
    return json.dumps(fields, sort_keys=True, separators=_SEPARATORS, ensure_ascii=True)


def decode_lines(content: bytes, alias: str) -> tuple[SyncsLine, ...]:
    """Read what ``encode_lines`` gives, and nothing else.  Raises MalformedValue: another mirror's too."""
    first, *texts = content.split(b"\n")
    if len(texts) > LINES_MAX:
        raise MalformedValue(f"an object of pairs has at most {LINES_MAX} partitions")
    if first != json.dumps({"source": alias}, separators=_SEPARATORS).encode("ascii"):
        raise MalformedValue(f"these pairs are of another mirror than that of {alias}")
    lines = tuple(map(_decode_line, texts))
    if [line.at for line in lines] != sorted({line.at for line in lines}):
        raise MalformedValue("pairs of one partition are in one line, and lines are sorted")
    return lines


def _decode_line(text: bytes) -> SyncsLine:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise MalformedValue("a line of pairs is no JSON") from cause
    fields = Fields(found, KIND, checked=True)
    offsets = found.get("pairs")
    is_list = isinstance(offsets, list) and len(offsets) % 2 == 0 and all(type(one) is int for one in offsets)
    topic_id = fields.text("topic_id")
    if not is_list or len(topic_id) > _TOPIC_ID_CHARS_MAX:
        raise MalformedValue("a line of pairs holds a topic's id and differences of offsets")
    pairs: list[SyncPair] = []
    last = SyncPair(0, 0)
    for upstream, downstream in zip(offsets[::2], offsets[1::2], strict=True):
        last = SyncPair(last.upstream + upstream, last.downstream + downstream)
        pairs.append(last)
    at = TopicPartition(fields.text("topic"), fields.integer("partition", most=(1 << 31) - 1))
    settled = fields.integer("settled", least=-1)
    line = SyncsLine(at, topic_id, fields.boolean("is_reset"), settled, tuple(pairs))
    if _encode_line(line).encode("ascii") != text or add_pairs((), line.pairs) != line.pairs:
        raise MalformedValue("a line of pairs is not in its one form")
    return line
