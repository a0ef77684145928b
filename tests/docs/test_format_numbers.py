"""docs/format.md §2 to §5 and the code name the same numbers and kinds."""

from __future__ import annotations

import re
from pathlib import Path

from pitr.errors import NotAuthentic
from pitr.layout import ArchiveId
from pitr.pipeline import compress, envelope, frames, headed, keys, seal, sign
from storage.store import OBJECT_BYTES_MAX

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")


def section(number: str) -> str:
    """The text of one section, its subsections included."""
    match = re.search(rf"^(##+) {re.escape(number)} .*?(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert match is not None, number
    return match[0]


def test_the_documented_frame_size_is_the_one_written() -> None:
    assert "at most 1 MiB (`2**20` bytes)" in section("2")
    assert seal.FRAME_CONTENT_BYTES == 1 << frames.FRAME_LOG2 == 2**20
    assert "`n + n/256 + 64` bytes" in section("2")
    assert compress.frame_bytes_max(2**20) == 2**20 + 2**20 // 256 + 64


def test_the_documented_header_adds_up_and_is_the_one_written() -> None:
    text = section("3")
    sizes = [int(size) for size in re.findall(r"^ {4,}(?:header)? +\S+ +(\d+) bytes", text, re.MULTILINE)]
    sizes += [
        int(bits) // 8 for bits in re.findall(r"^ {4,}(?:suite|frame_log2) +u(\d+)", text, re.MULTILINE)
    ]
    stated = re.search(r"The header has (\d+) bytes", text)
    assert stated is not None
    # The magic stands before its size as a quoted text.
    assert '"PITR1\\0"  6 bytes' in text
    body = seal.seal(b"", keys.DataKey(bytes(32)), seal.Context("0" * 32, ArchiveId(1, 1), "pack", "n"))
    magic, suite, frame_log2 = body[:6], body[6], body[7]
    assert (magic, suite, frame_log2) == (b"PITR1\0", seal.SUITE_AES_256_GCM, frames.FRAME_LOG2)
    assert sum(sizes) == int(stated[1]) == seal.HEADER_BYTES


def test_the_documented_range_of_frame_sizes_is_the_one_accepted() -> None:
    assert "12 to 26 is accepted" in section("3")
    key, context = keys.DataKey(bytes(32)), seal.Context("0" * 32, ArchiveId(1, 1), "pack", "n")
    header = seal.Sealer(key, context).header
    accepted = []
    for frame_log2 in range(256):
        try:
            seal.container_key_id(header[:7] + bytes([frame_log2]) + header[8:])
        except NotAuthentic:
            continue
        accepted.append(frame_log2)
        assert frames.sealed_bytes_max(frame_log2) == 2**frame_log2 + 2 ** (frame_log2 - 8) + 80
    assert accepted == list(range(12, 27))
    assert "17 to 2**frame_log2 + 2**(frame_log2 - 8) + 80" in section("3")


def test_the_documented_kinds_are_those_that_may_be_sealed() -> None:
    table = re.findall(r"^\| (`.*?) \| .*? \| (.*?) \|$", section("3"), re.MULTILINE)
    documented = {kind: place != "absent" for kinds, place in table for kind in re.findall("`(.*?)`", kinds)}
    assert documented == seal.KINDS


def test_the_documented_limits_of_records_and_headers_are_the_codes() -> None:
    text = section("4")
    assert "nested at most 32 deep" in text
    assert sign.DEPTH_MAX == 32
    assert "at most 64 MiB" in text
    assert sign.RECORD_BYTES_MAX == OBJECT_BYTES_MAX == 64 << 20
    assert "1 to 1 MiB" in text
    assert headed.ENVELOPE_BYTES_MAX == 1 << 20
    assert "first 16 KiB" in text
    assert headed.HEADER_READ_BYTES == 16 << 10


def test_the_documented_sizes_of_sealed_keys_are_those_made() -> None:
    text = section("5")
    stated = re.search(r"(\d+) bytes in suite 1, (\d+) in suite 2", text)
    assert stated is not None
    recipients = [keys.Identity(bytes(32)).recipient(suite) for suite in (1, 2)]
    assert [len(r.seal(bytes(32), b"info")) for r in recipients] == [int(stated[1]), int(stated[2])]
    assert "1 to 64 recipients" in text
    assert envelope.RECIPIENTS_MAX == 64
