"""A fence's one text: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fix_fences import fence_of
from hypothesis import given
from hypothesis import strategies as st

from pitr.errors import MalformedValue
from pitr.events.fence import Fence, GroupFence, Identity, Mark, PartitionFence, TopicFence
from pitr.events.fence_code import decode_fence, encode_fence, encode_row
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

_OFFSETS = st.integers(0, (1 << 63) - 1)
_NAMES = st.text("abcXYZ019._-", min_size=1, max_size=20).filter(lambda name: name not in {".", ".."})
_TIMES = st.integers(0, 1 << 52).map(lambda us: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))
_IDENTITIES = st.builds(Identity, st.integers(-1, 1 << 60), st.binary(min_size=32, max_size=32))


@st.composite
def _partitions(draw: st.DrawFn) -> tuple[PartitionFence, ...]:
    numbers = draw(st.lists(st.integers(0, 100), unique=True, max_size=4))
    found = []
    for number in sorted(numbers):
        low, before = sorted(draw(st.tuples(_OFFSETS, _OFFSETS)))
        last = draw(st.none() | _IDENTITIES)
        offset = None if last is None else draw(_OFFSETS)
        found.append(PartitionFence(number, low, before, draw(st.none() | _OFFSETS), last, offset))
    return tuple(found)


@st.composite
def fences(draw: st.DrawFn) -> Fence:
    mark = Mark(
        draw(st.integers(1, 1 << 40)),
        draw(st.integers(1, (1 << 64) - 1)),
        TimelineId(draw(st.integers(1, 99))),
        LSN(draw(st.integers(1, 1 << 50))),
        *(draw(st.integers(0, 1 << 62)) for _ in range(3)),
        at=draw(_TIMES),
    )
    names = sorted(draw(st.sets(_NAMES, max_size=3)))
    topics = tuple(TopicFence(name, "id-" + name, draw(_partitions())) for name in names)
    offsets = st.dictionaries(_NAMES, st.dictionaries(st.integers(0, 50), _OFFSETS, max_size=3), max_size=2)
    groups = tuple(GroupFence(name, draw(offsets)) for name in sorted(draw(st.sets(_NAMES, max_size=2))))
    by = draw(st.none() | st.builds(LSN, st.integers(1, 1 << 50)))
    clock = draw(st.none() | _TIMES)
    return Fence(mark, draw(_TIMES), clock, "cluster", topics, groups, committed_by=by)


@given(fences())
def test_what_is_written_is_read(fence: Fence) -> None:
    text = encode_fence(fence)
    assert decode_fence(text) == fence
    assert encode_fence(decode_fence(text)) == text


@given(fences())
def test_a_row_says_nothing_of_what_came_after_its_commit(fence: Fence) -> None:
    later = replace(fence, committed_by=LSN(1 << 51))
    assert encode_row(later) == encode_row(fence)


@given(st.text(max_size=200))
def test_texts_that_are_no_fence_are_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        decode_fence(text)


@given(st.data())
def test_a_fence_with_any_field_changed_is_refused_or_read_as_it_says(data: st.DataObject) -> None:
    fields = json.loads(encode_fence(fence_of(3)))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
    )
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    try:
        found = decode_fence(text)
    except MalformedValue:
        return
    assert encode_fence(found) == text


def changed(**fields: object) -> str:
    whole = json.loads(encode_fence(fence_of(3)))
    return json.dumps({**whole, **fields}, sort_keys=True, separators=(",", ":"))


PARTITION = [0, 0, 100, 105, None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[" * 100_000,
        '{"kind":"fence"}',
        changed(number=0),
        changed(system_identifier="0700"),
        changed(xid=1 << 63),
        changed(unknown="away"),  # and yet it has topics
        changed(topics=[{"id": "x", "name": "..", "partitions": []}]),
        changed(
            topics=[{"id": "x", "name": "b", "partitions": []}, {"id": "x", "name": "a", "partitions": []}]
        ),
        changed(topics=[{"id": "x", "name": "a", "partitions": [PARTITION, PARTITION]}]),
        changed(topics=[{"id": "x", "name": "a", "partitions": [[0, 101, 100, 105, None]]}]),
        changed(topics=[{"id": "x", "name": "a", "partitions": [[0, 0, True, 105, None]]}]),
        changed(topics=[{"id": "x", "name": "a", "partitions": [[0, 0, -1, 105, None]]}]),
        changed(topics=[{"id": "x", "name": "a", "partitions": [[0, 0, 9, 9, [8, 1, "ab"]]]}]),
        changed(topics=[{"id": "\u001b[31m", "name": "a", "partitions": []}]),
        changed(groups=[{"group": "g", "offsets": {"a": [[1, 1], [0, 1]]}}]),
        changed(groups=[{"group": "g", "offsets": {"a b": []}}]),
        changed(cluster_id="x" * 300),
        encode_fence(fence_of(3)) + " ",
        encode_fence(fence_of(3)).replace('"xid":', '"xid": '),
    ],
)
def test_hostile_texts_are_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        decode_fence(text)


def test_a_text_without_a_bound_is_refused_unread() -> None:
    with pytest.raises(MalformedValue, match="at most"):
        decode_fence(" " * ((8 << 20) + 1))
