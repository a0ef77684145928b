"""The record of a lease, as a value: who may do a thing alone, and until when.  Pure.

Reference: docs/format.md §6.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload, archive_fields
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.sign import encode_time

_HOST_CHARS_MAX = 255
_HOLDER = re.compile(r"([^/\x00-\x20\x7f]{1,255})/([0-9]{1,10})/([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease: a process of a host.

    In a ``place`` (16 hex digits) only one process works at a time, so another holder of the same host and
    place is dead.
    """

    host: str
    process: int
    place: str

    def __post_init__(self) -> None:
        if _HOLDER.fullmatch(str(self)) is None:
            raise MalformedValue(f"not a lease's holder: {str(self)!r}")

    def __str__(self) -> str:
        return f"{self.host}/{self.process}/{self.place}"

    @classmethod
    def parse(cls, text: str) -> Holder:
        """Read ``HOST/PROCESS/PLACE``.  Raises MalformedValue."""
        match = _HOLDER.fullmatch(text)
        if match is None:
            raise MalformedValue(f"not a lease's holder: {text[:80]!r}")
        return cls(match[1], int(match[2]), match[3])

    @classmethod
    def of_host(cls, host: str, process: int, place: str) -> Holder:
        """Return the holder for a host's name as the system gives it, which may be anything."""
        return cls(re.sub(r"[^A-Za-z0-9._-]", "-", host)[:_HOST_CHARS_MAX] or "unnamed", process, place)

    @property
    def described(self) -> str:
        """Return it in a person's words."""
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Record ``number`` of a lease: whose it is from ``taken_at`` to ``until_at``, if there is no newer one.

    ``is_released``: the holder has ended, and nobody has it.
    """

    repository: str
    archive: ArchiveId
    name: str
    number: int
    holder: Holder
    taken_at: datetime
    until_at: datetime
    is_released: bool = False

    def __post_init__(self) -> None:
        if self.number < 1 or self.until_at < self.taken_at:
            raise MalformedValue(f"lease {self.name}: record {self.number} ends before it begins")

    def to_payload(self) -> Payload:
        return {
            **archive_fields("lease", self.repository, self.archive),
            "name": self.name,
            "number": self.number,
            "holder": str(self.holder),
            "taken_at": encode_time(self.taken_at),
            "until_at": encode_time(self.until_at),
            "released": self.is_released,
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> LeaseRecord:
        fields = Fields(payload, "lease")
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            name=fields.text("name"),
            number=fields.integer("number", least=1),
            holder=Holder.parse(fields.text("holder")),
            taken_at=fields.time("taken_at"),
            until_at=fields.time("until_at"),
            is_released=fields.boolean("released"),
        )
