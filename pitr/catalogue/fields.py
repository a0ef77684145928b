"""Fields of a signed record's payload: read strictly, written in one way.  Pure.

A payload is hostile until each field has been looked at: a signature says who wrote it, not
that it makes sense.  So every reader here checks type and bounds and raises MalformedValue with
the record's kind and the field's name.  Reference: docs/format.md §4, §6.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.sign import check_repository_id, decode_time
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

DIGEST_BYTES = 32
KEY_ID_BYTES = 16
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
# No text of ours comes near; it keeps a hostile record from filling a log or a table.
TEXT_CHARS_MAX = 65536

_T = TypeVar("_T")


def base64_text(content: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(content).decode("ascii")


class Fields:
    """One JSON object of a payload, read field by field; unknown fields are ignored (docs/format.md §4)."""

    __slots__ = ("_kind", "_payload")

    def __init__(self, payload: object, kind: str, *, checked: bool = False) -> None:
        if not isinstance(payload, Mapping):
            raise MalformedValue(f"a {kind} record holds no object where one must be")
        self._payload: Mapping[str, object] = payload
        self._kind = kind
        if not checked and self._payload.get("kind") != kind:
            raise MalformedValue(f"not a {kind} record: kind is {self._payload.get('kind')!r}")

    def _refuse(self, name: str, why: str) -> MalformedValue:
        return MalformedValue(f"{self._kind} record: {name} {why}")

    def _get(self, name: str) -> object:
        if name not in self._payload:
            raise self._refuse(name, "is missing")
        return self._payload[name]

    def holds(self, name: str) -> bool:
        """Tell whether the field is there and not null; only for one that older records lack."""
        return self._payload.get(name) is not None

    def is_null(self, name: str) -> bool:
        """Tell whether the field is there and null."""
        return self._get(name) is None

    def optional(self, name: str, read: Callable[[str], _T]) -> _T | None:
        """Return None for null, else what ``read`` makes of the field."""
        return None if self._get(name) is None else read(name)

    def text(self, name: str) -> str:
        """Return a string of at most TEXT_CHARS_MAX characters."""
        return self.as_text(name, self._get(name))

    def as_text(self, name: str, value: object) -> str:
        """Return ``name``, or a member of it, that must be a text."""
        if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
            raise self._refuse(name, f"must be a text of at most {TEXT_CHARS_MAX} characters")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Return a text that is one of ``choices``."""
        value = self.text(name)
        if value not in choices:
            raise self._refuse(name, f"must be one of {', '.join(choices)}: {value!r}")
        return value

    def integer(self, name: str, *, least: int = 0, most: int = (1 << 63) - 1) -> int:
        """Return an integer from ``least`` to ``most``; true and false are none."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._refuse(name, f"must be an integer from {least} to {most}")
        return value

    def boolean(self, name: str) -> bool:
        """Return true or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._refuse(name, "must be true or false")
        return value

    def time(self, name: str) -> datetime:
        """Return an aware time in UTC."""
        return decode_time(self.text(name))

    def lsn(self, name: str) -> LSN:
        """Return an LSN; the text must be as PostgreSQL prints it."""
        text = self.text(name)
        lsn = LSN.parse(text)
        if str(lsn) != text:
            # One position, one text: else two records that say the same would differ.
            raise self._refuse(name, f"is not in PostgreSQL's form: {text!r}")
        return lsn

    def timeline(self, name: str) -> TimelineId:
        """Return a timeline from its eight hexadecimal digits."""
        return TimelineId.parse(self.text(name))

    def hexadecimal(self, name: str, size_bytes: int) -> bytes:
        """Return ``size_bytes`` bytes from lower-case hexadecimal digits."""
        text = self.text(name)
        if len(text) != 2 * size_bytes or _HEX.fullmatch(text) is None:
            raise self._refuse(name, f"must have {2 * size_bytes} lower-case hexadecimal digits")
        return bytes.fromhex(text)

    def digest(self, name: str) -> bytes:
        """Return a SHA-256 or HMAC-SHA256."""
        return self.hexadecimal(name, DIGEST_BYTES)

    def key_id(self, name: str) -> bytes:
        """Return the id of a data key."""
        return self.hexadecimal(name, KEY_ID_BYTES)

    def base64(self, name: str, *, size_bytes_max: int) -> bytes:
        """Return the bytes of a base64 text."""
        value = self._get(name)
        if not isinstance(value, str) or len(value) > size_bytes_max * 4 // 3 + 4:
            raise self._refuse(name, f"must be base64 of at most {size_bytes_max} bytes")
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as cause:
            raise self._refuse(name, "is not base64") from cause

    def repository(self) -> str:
        """Return the repository's id: 32 hexadecimal digits."""
        return check_repository_id(self.text("repository"))

    def archive(self) -> ArchiveId:
        """Return the archive of ``system_identifier`` and ``epoch``."""
        system = self.text("system_identifier")
        if not re.fullmatch(r"[1-9][0-9]{0,19}", system):
            raise self._refuse("system_identifier", f"is no system identifier: {system!r}")
        return ArchiveId(int(system), self.integer("epoch", least=1, most=99_999_999))

    def inner(self, name: str) -> Fields:
        """Return the object in this field, to be read in its turn."""
        return Fields(self._get(name), self._kind, checked=True)

    def mapping(self, name: str) -> Mapping[str, object]:
        """Return the object in this field as it is, for a reader of its own."""
        value = self._get(name)
        if not isinstance(value, Mapping):
            raise self._refuse(name, "must be an object")
        return value

    def items(self, name: str, *, count_max: int) -> list[object]:
        """Return a list of at most ``count_max`` members, unread."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) > count_max:
            raise self._refuse(name, f"must be a list of at most {count_max}")
        return value

    def objects(self, name: str, *, count_max: int) -> Iterator[Fields]:
        """Yield the objects of a list."""
        return (Fields(item, self._kind, checked=True) for item in self.items(name, count_max=count_max))

    def texts(self, name: str, *, count_max: int) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(self.as_text(name, item) for item in self.items(name, count_max=count_max))

    def lists(self, name: str, *, count_max: int, least: int) -> Iterator[list[object]]:
        """Yield a list's members, each a list of ``least`` members or more."""
        for item in self.items(name, count_max=count_max):
            if not isinstance(item, list) or len(item) < least:
                raise self._refuse(name, f"must hold lists of {least}")
            yield item

    def as_integers(self, name: str, values: Sequence[object], *, count: int) -> list[int]:
        """Return the first ``count`` of members of ``name`` that must be numbers from 0 up."""
        numbers: list[int] = []
        for value in values[:count]:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
                raise self._refuse(name, "must hold integers from 0 up")
            numbers.append(value)
        return numbers

    def text_pairs(self, name: str, *, count_max: int) -> tuple[tuple[str, str], ...]:
        """Return an object of texts as pairs in the order of their names."""
        value = self._get(name)
        if not isinstance(value, Mapping) or len(value) > count_max:
            raise self._refuse(name, f"must be an object of at most {count_max} texts")
        pairs = [(self.as_text(name, key), self.as_text(name, text)) for key, text in value.items()]
        return tuple(sorted(pairs))
