"""Files that commands are told to make."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cli.made_file import write_made


def test_a_file_is_replaced_whole_and_is_its_owners_alone_whoever_could_read_the_old_one(
    tmp_path: Path,
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(b"old, and longer than the new one")
    plan.chmod(0o644)
    before = plan.stat().st_ino
    write_made(plan, b"new")
    assert plan.read_bytes() == b"new"
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    # Replaced and not written over: a crash leaves one of both.
    assert plan.stat().st_ino != before
    assert [one.name for one in tmp_path.iterdir()] == ["plan.json"]


def test_what_is_no_file_of_its_own_is_written_into_and_keeps_its_name(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    link = tmp_path / "stdout"
    link.symlink_to(f"/proc/self/fd/{writer}")
    write_made(link, b"new")
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert stream.read() == b"new"
    assert link.is_symlink()
