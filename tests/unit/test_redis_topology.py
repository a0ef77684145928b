"""What CLUSTER NODES says, and the outside of an RDB file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.derived.rdb import check_tail, read_head
from pitr.derived.topology import SlotRange, parse_nodes
from pitr.errors import MalformedValue

NODES = """\
aa 127.0.0.1:7001@17001 myself,master - 0 0 1 connected 0-5460
bb 10.0.0.2:7002@17002,node-b master - 0 1 2 connected 5461-10922 16383
cc :7003@17003 master,fail - 0 1 3 connected 10923-16382
dd 10.0.0.4:7004@17004 slave aa 0 1 1 connected
ee 10.0.0.5:7005@17005 master - 0 1 5 connected
"""


def test_masters_with_slots_are_told_by_address_and_in_the_order_of_their_slots() -> None:
    topology = parse_nodes(NODES, asked_host="seed")
    assert [(one.node_id, one.address, one.is_failing) for one in topology.masters] == [
        ("aa", "127.0.0.1:7001", False),
        ("bb", "10.0.0.2:7002", False),
        ("cc", "seed:7003", True),
    ]
    assert topology.masters[1].slots == (SlotRange(5461, 10_922), SlotRange(16_383, 16_383))
    assert (topology.missing_slots, topology.is_moving) == (0, False)
    owner = topology.owner(16_383)
    assert owner is not None
    assert owner.node_id == "bb"


def test_ipv6_moving_slots_and_missing_ones_are_seen() -> None:
    topology = parse_nodes(
        "aa fe80::1:7001@17001 myself,master - 0 0 1 connected 0-99 [5->-bb]", asked_host="x"
    )
    assert topology.masters[0].address == "[fe80::1]:7001"
    assert topology.is_moving
    assert topology.missing_slots == 16_384 - 100
    assert topology.owner(100) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aa 127.0.0.1:1@2 master - 0",
        "aa nowhere master - 0 0 1 connected 0-1",
        "aa 127.0.0.1:1@2 master - 0 0 1 connected 5-1",
        "aa 127.0.0.1:1@2 master - 0 0 1 connected 0-16384",
        "aa 127.0.0.1:1@2 master - 0 0 1 connected x",
        "aa h:1@2 master - 0 0 1 connected 0-9\nbb h:2@3 master - 0 0 1 connected 9-12",
    ],
)
def test_what_no_cluster_says_is_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        parse_nodes(text, asked_host="seed")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        topology = parse_nodes(text, asked_host="seed")
    except MalformedValue:
        return
    assert topology.masters


# What a server of version 6.2.5 writes first.
HEAD = (
    b"REDIS0009\xfa\x09redis-ver\x056.2.5\xfa\x0aredis-bits\xc0\x40\xfa\x05ctime\xc2\x00\x10\x20\x69"
    b"\xfa\x08used-mem\xc2\x10\x20\x30\x00\xfe\x00"
)


def test_the_beginning_of_a_file_says_version_and_time() -> None:
    head = read_head(HEAD)
    assert (head.version, head.redis_version, head.created_s) == (9, "6.2.5", 0x69201000)
    # What is cut off is not made up.
    assert read_head(HEAD[:40]).created_s is None
    with pytest.raises(MalformedValue):
        read_head(b"RIFF" + HEAD)


@given(st.binary(max_size=60))
def test_any_beginning_is_read_or_refused(tail: bytes) -> None:
    read_head(b"REDIS0009" + tail)
    read_head(HEAD[:30] + tail)


def test_a_file_without_its_end_is_refused() -> None:
    check_tail(b"\xff" + bytes(8))
    for tail in (b"", b"\xff" + bytes(7), b"\xfe" + bytes(8)):
        with pytest.raises(MalformedValue):
            check_tail(tail)
