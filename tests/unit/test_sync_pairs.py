"""Pairs and names of a mirror: what MirrorMaker writes, and nothing else, is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.errors import MalformedValue
from pitr.events.mirror_names import MirrorNames, ReplicationPolicy
from pitr.events.partition import OFFSET_MAX, TopicPartition
from pitr.events.sync_pairs import Sync, SyncPair, decode_sync, encode_sync

# Bytes that a real MirrorMaker wrote for record 504 of orders[3], whose copy is at 505.
KEY = b"\x00\x06orders\x00\x00\x00\x03"
VALUE = b"\x00\x00\x00\x00\x00\x00\x01\xf8\x00\x00\x00\x00\x00\x00\x01\xf9"
_topics = st.text("abcXYZ019._-", min_size=1, max_size=249).filter(lambda name: name not in {".", ".."})
_offsets = st.integers(0, OFFSET_MAX)


def test_a_pair_is_read_as_mirrormaker_writes_it() -> None:
    assert decode_sync(KEY, VALUE) == Sync(TopicPartition("orders", 3), SyncPair(504, 505))


@given(_topics, st.integers(0, (1 << 31) - 1), _offsets, _offsets)
def test_a_pair_comes_back_from_its_bytes(topic: str, number: int, upstream: int, downstream: int) -> None:
    sync = Sync(TopicPartition(topic, number), SyncPair(upstream, downstream))
    assert decode_sync(*encode_sync(sync)) == sync


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, VALUE),
        (KEY, None),
        (b"", VALUE),
        (KEY + b"\0", VALUE),
        (KEY[:-1], VALUE),
        (KEY, VALUE[:-1]),
        (KEY, VALUE + b"\0"),
        (b"\xff\xff" + KEY[2:], VALUE),
        (b"\x00\x00\x00\x00\x00\x03", VALUE),
        (b"\x00\x06ord/rs\x00\x00\x00\x03", VALUE),
        (b"\x00\x06ord\xc3\xa9s\x00\x00\x00\x03", VALUE),
        (b"\x00\x06orders\xff\xff\xff\xff", VALUE),
        (KEY, b"\xff" * 16),
    ],
)
def test_other_bytes_are_no_pair(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(MalformedValue):
        decode_sync(key, value)


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_any_bytes_are_a_pair_of_one_form_or_refused(key: bytes, value: bytes) -> None:
    try:
        sync = decode_sync(key, value)
    except MalformedValue:
        return
    assert encode_sync(sync) == (key, value)


@pytest.mark.parametrize(
    ("names", "orders", "syncs"),
    [
        (MirrorNames("eu"), "eu.orders", "mm2-offset-syncs.eu.internal"),
        (MirrorNames("eu", separator="_"), "eu_orders", "mm2-offset-syncs_eu_internal"),
        (MirrorNames("eu", ReplicationPolicy.IDENTITY), "orders", "mm2-offset-syncs.eu.internal"),
        (MirrorNames("eu", syncs_topic="syncs"), "eu.orders", "syncs"),
    ],
)
def test_topics_are_named_as_the_policy_names_them(names: MirrorNames, orders: str, syncs: str) -> None:
    assert (names.remote("orders"), names.syncs) == (orders, syncs)
    assert names.source(orders) == "orders"
    assert names.source(syncs) is None
    assert names.heartbeats == f"eu{names.separator}heartbeats"
    assert names.source(names.heartbeats) is None
    assert names.source(names.checkpoints) is None


def test_a_topic_of_another_flow_is_no_copy() -> None:
    assert MirrorNames("eu").source("us.orders") is None
    assert MirrorNames("eu").source("eu.us.orders") == "us.orders"
    assert MirrorNames("eu").source("eu.") is None


@pytest.mark.parametrize(
    ("alias", "separator"), [("", "."), ("e/u", "."), ("eu", ""), ("eu", "x"), ("a" * 101, ".")]
)
def test_a_name_that_no_mirror_has_is_refused(alias: str, separator: str) -> None:
    with pytest.raises(MalformedValue):
        MirrorNames(alias, separator=separator)
