"""Records in chunks: nobody's sizes decide how much memory is taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_replay import event

from pitr.events.broker import EventRecord, OffsetGone
from pitr.events.chunks import chunks
from pitr.events.partition import TopicPartition

AT = TopicPartition("orders", 0)


def offsets(records: Iterator[EventRecord] | list[EventRecord], **bounds: int) -> list[list[int]]:
    return [[one.offset for one in chunk.records] for chunk in chunks(records, **bounds)]


def test_a_chunk_is_full_by_number_or_by_bytes_of_key_value_and_headers() -> None:
    small = [event(at, value=b"") for at in range(5)]
    assert offsets(small, count_max=2) == [[0, 1], [2, 3], [4]]
    big = b"x" * 1000
    for part in (
        {"key": "k" * 1000},
        {"value": big},
        {"headers": [("h", big)]},
        {"headers": [("h" * 1000, None)]},
    ):
        assert offsets([event(at, **part) for at in range(3)], bytes_max=1000) == [[0], [1], [2]]  # type: ignore[arg-type]
    assert offsets([]) == []
    (whole,) = chunks(small)
    assert whole.size_bytes == sum(one.size_bytes for one in small)


def test_what_was_read_before_records_went_is_given_first() -> None:
    def until_gone() -> Iterator[EventRecord]:
        yield from (event(at) for at in range(3))
        raise OffsetGone(AT, 3, 9)

    found = chunks(until_gone(), count_max=2)
    assert [[one.offset for one in chunk.records] for chunk in (next(found), next(found))] == [[0, 1], [2]]
    with pytest.raises(OffsetGone):
        next(found)
