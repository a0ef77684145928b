"""MACs of content: what they hold for, and what not."""

from __future__ import annotations

import os

from pitr.pipeline.content_mac import MAC_BYTES, ContentMac

CONTENT = os.urandom(5000)


def test_a_mac_holds_for_the_same_bytes_and_no_others() -> None:
    macs = ContentMac(bytes(32), os.urandom)
    mac = macs.make(memoryview(CONTENT))
    assert len(mac) == MAC_BYTES
    assert macs.holds(mac, CONTENT)
    assert ContentMac(bytes(32), os.urandom).holds(mac, CONTENT)
    for at in (0, 2500, 4999):
        changed = bytearray(CONTENT)
        changed[at] ^= 1
        assert not macs.holds(mac, bytes(changed))
    assert not macs.holds(mac, CONTENT[:-1])
    assert not macs.holds(mac, CONTENT + b"\0")
    assert not ContentMac(bytes(31) + b"\1", os.urandom).holds(mac, CONTENT)


def test_no_two_macs_of_one_content_are_alike() -> None:
    macs = ContentMac(bytes(32), os.urandom)
    assert macs.make(CONTENT) != macs.make(CONTENT)


def test_what_is_no_mac_holds_for_nothing() -> None:
    macs = ContentMac(bytes(32), os.urandom)
    mac = macs.make(b"")
    for broken in (b"", mac[:-1], mac + b"\0", mac[:12]):
        assert not macs.holds(broken, b"")
