"""External configuration of a hostile backup: nothing comes to lie outside of the restored directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fix_small_backup import SmallBackup

from pitr.errors import MalformedValue, PitrError
from pitr.pipeline.pack_writer import FileStatus
from pitr.pipeline.packs import decode_line
from pitr.restore_files import ChainLink, FileRestorer

STATUS = FileStatus(0o600, 1_700_000_000)


@pytest.mark.parametrize(
    "path",
    [
        "pitr-config/../../etc/postgresql/17/main/postgresql.conf",
        "pitr-config/../escaped",
        "pitr-config//etc/passwd",
        "pitr-config/./etc/passwd",
        "/etc/postgresql/17/main/postgresql.conf",
        "pitr-config/etc/\0passwd",
    ],
)
@pytest.mark.parametrize("kind", ["path", "directory"])
def test_a_path_that_leads_out_is_no_line_of_an_index(path: str, kind: str) -> None:
    fields = {"size": 0, "mode": 0o600, "mtime": 0, "crc32c": "00000000", "extents": []}
    for name in ({kind: path}, {f"{kind}_hex": os.fsencode(path).hex()}):
        with pytest.raises(MalformedValue, match="not a path below"):
            decode_line(json.dumps({**fields, **name}).encode())


def test_a_link_for_configuration_is_no_line_of_an_index() -> None:
    with pytest.raises(MalformedValue, match="no tablespace"):
        decode_line(json.dumps({"link": "pitr-config/etc", "to": 16385}).encode())


def restore(backup: SmallBackup, root: Path, notes: Path) -> None:
    root.mkdir()
    FileRestorer(
        backup.store,
        [ChainLink(backup.manifest(), backup.key)],
        root,
        {16385: root.with_name("space")},
        notes,
        on_file=lambda _file: None,
        on_progress=lambda _progress: None,
        patience_s=0.05,
    ).run()


def test_a_file_where_a_directory_must_be_is_refused(tmp_path: Path) -> None:
    backup = SmallBackup()
    writer = backup.writer(0)
    for path in (b"pitr-config", b"pitr-config/etc"):
        backup.contents[path.decode()] = b"x"
        writer.add_small(path, b"x", STATUS)
    writer.finish()
    with pytest.raises(PitrError):
        restore(backup, tmp_path / "root", tmp_path / "notes")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["pitr-config", "root"]


def test_a_mode_gives_nobody_more_than_the_cluster_has(tmp_path: Path) -> None:
    backup = SmallBackup()
    writer = backup.writer(0)
    writer.add_directory(b"pitr-config", 0o7777)
    backup.contents["pitr-config/run"] = b"#!/bin/sh\n"
    writer.add_small(b"pitr-config/run", b"#!/bin/sh\n", FileStatus(0o7777, 0))
    writer.finish()
    restore(backup, tmp_path / "root", tmp_path / "notes")
    assert (tmp_path / "root/pitr-config/run").stat().st_mode & 0o7777 == 0o640
    assert (tmp_path / "root/pitr-config").stat().st_mode & 0o7777 == 0o750
