"""A walk over the WAL of a restore plan: bytes in their order, of the units that are needed only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, TypeAlias

from pitr.catalogue.wal_records import WalUnit
from pitr.errors import NotAuthentic
from pitr.restore_plan import RestorePlan
from pitr.wal.lsn import LSN
from pitr.wal.records import iter_records

# Opens one unit: the WAL bytes from its start to its end.
ReadWal: TypeAlias = Callable[[WalUnit], bytes]
# The walk goes back a unit or two to find where a record begins; more are not read twice.
_UNITS_HELD_MAX: Final = 4


class WalWalk:
    """Walks the WAL of a plan from any place on, opening only the units that it needs."""

    def __init__(self, plan: RestorePlan, read_wal: ReadWal) -> None:
        self._links: Final = plan.links
        self.segment_bytes: Final = plan.backup.segment_bytes
        self._read_wal: Final = read_wal
        self._held: OrderedDict[object, bytes] = OrderedDict()

    def chunks(self, since: LSN, until: LSN | None = None) -> Iterator[tuple[LSN, bytes]]:
        """Yield contiguous WAL that begins early enough to see the record that lies across ``since``.

        It ends with the link that holds the byte before ``until``.
        """
        last = next(
            (n for n, link in enumerate(self._links) if until is not None and until <= link.until),
            len(self._links) - 1,
        )
        return self._from(self._first_link(since), last)

    def _first_link(self, since: LSN) -> int:
        """Return the last link from which a walk knows all records that end after ``since``."""
        number = next((n for n, link in enumerate(self._links) if since < link.until), len(self._links) - 1)
        while number > 0:
            # A walk that begins in mid-record only learns at the next page where records begin.
            records = iter_records(self._from(number, len(self._links) - 1), segment_bytes=self.segment_bytes)
            first = next(islice(records, 1), None)
            if first is not None and first.start <= since:
                return number
            number -= 1
        return 0

    def _from(self, first: int, last: int) -> Iterator[tuple[LSN, bytes]]:
        for link in self._links[first : last + 1]:
            whole = self._open(link.unit)
            begin = link.start - link.unit.start
            yield link.start, whole[begin : begin + (link.until - link.start)]

    def _open(self, unit: WalUnit) -> bytes:
        if unit.key in self._held:
            self._held.move_to_end(unit.key)
            return self._held[unit.key]
        content = self._read_wal(unit)
        if len(content) != unit.end - unit.start:
            raise NotAuthentic(f"{unit.key} holds {len(content)} bytes of WAL, not {unit.end - unit.start}")
        self._held[unit.key] = content
        while len(self._held) > _UNITS_HELD_MAX:
            self._held.popitem(last=False)
        return content
