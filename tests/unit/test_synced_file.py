"""Files that are written past the page cache: whole, also where the file system will not have it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.synced_file import DIRECT_BYTES_MIN, write_synced

KIB = 1024
SIZES = [
    0,
    1,
    DIRECT_BYTES_MIN - 1,
    DIRECT_BYTES_MIN,
    DIRECT_BYTES_MIN + 1,
    512 * KIB - 1,
    512 * KIB,
    512 * KIB + 1,
    512 * KIB + 4096,
    3 * 512 * KIB + 4097,
]


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    yield opened
    os.close(opened)


def content_of(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_file_has_the_bytes_that_were_written_and_no_more(
    descriptor: int, tmp_path: Path, size_bytes: int
) -> None:
    content = content_of(size_bytes)
    write_synced(descriptor, content)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("head_bytes", [1, 300, 4096, 600 * KIB])
@pytest.mark.parametrize("size_bytes", SIZES)
def test_parts_follow_each_other_without_a_gap(
    descriptor: int, tmp_path: Path, head_bytes: int, size_bytes: int
) -> None:
    head, body = content_of(head_bytes), content_of(size_bytes)
    write_synced(descriptor, head, body)
    assert (tmp_path / "file").read_bytes() == head + body


@pytest.mark.parametrize("refused_at", [0, 512 * KIB])
def test_a_file_system_that_refuses_a_direct_write_gets_a_plain_one(
    descriptor: int, tmp_path: Path, refused_at: int
) -> None:
    content = content_of(2 * 512 * KIB + 5)
    refusals = [refused_at]

    def refuse_once(into: int, view: memoryview, offset: int) -> int:
        if refusals and offset == refusals[0]:
            refusals.clear()
            raise OSError(errno.EINVAL, "not so")
        return os.pwrite(into, view, offset)

    write_synced(descriptor, content, pwrite=refuse_once)
    assert refusals == []
    assert (tmp_path / "file").read_bytes() == content


def test_a_write_that_takes_only_some_bytes_goes_on_after_them(descriptor: int, tmp_path: Path) -> None:
    content = content_of(2 * 512 * KIB + 5)

    def short(into: int, view: memoryview, offset: int) -> int:
        return os.pwrite(into, view[: min(len(view), 64 * KIB)], offset)

    write_synced(descriptor, content, pwrite=short)
    assert (tmp_path / "file").read_bytes() == content


def test_a_full_disk_is_told_and_not_taken_for_a_refusal(descriptor: int) -> None:
    def full(into: int, view: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, f"no room for {len(view)} bytes at {offset} of {into}")

    with pytest.raises(OSError, match="no room"):
        write_synced(descriptor, content_of(DIRECT_BYTES_MIN), pwrite=full)
