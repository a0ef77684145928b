"""What of a data directory is listed for a base backup."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pitr.errors import BackupFailed
from pitr.postgres.datadir import (
    DataDirectory,
    DataEntry,
    DataFile,
    LeftOut,
    RelationFile,
    TablespaceLink,
    largest_first,
    list_data_directory,
    parse_relation_path,
)

VERSION = b"PG_17_202406281"


def write(root: Path, *names: str, size_bytes: int = 1) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size_bytes))


def listing(root: Path) -> list[DataEntry]:
    return sorted(list_data_directory(os.fsencode(root), VERSION), key=lambda entry: entry.path)


def files(root: Path) -> list[str]:
    return [os.fsdecode(entry.path) for entry in listing(root) if isinstance(entry, DataFile)]


def directories(root: Path) -> list[str]:
    return [os.fsdecode(entry.path) for entry in listing(root) if isinstance(entry, DataDirectory)]


def test_directories_of_passing_things_come_empty(tmp_path: Path) -> None:
    emptied = [
        "pg_dynshmem",
        "pg_notify",
        "pg_replslot",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
    ]
    for name in emptied:
        write(tmp_path, f"{name}/x/y")
    write(tmp_path, "pg_wal/000000010000000000000001", "pg_wal/archive_status/x.done", "pg_wal/summaries/y")
    write(tmp_path, "pg_xact/0000", "PG_VERSION")
    assert files(tmp_path) == ["PG_VERSION", "pg_xact/0000"]
    wal = ["pg_wal", "pg_wal/archive_status", "pg_wal/summaries"]
    assert directories(tmp_path) == sorted([*emptied, *wal, "pg_xact"])


def test_files_that_a_running_server_owns_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "postmaster.pid", "postmaster.opts", "postgresql.auto.conf.tmp", "current_logfiles.tmp")
    write(tmp_path, "backup_label", "tablespace_map", "backup_manifest", "global/pg_control")
    write(tmp_path, "global/pg_internal.init", "base/5/pg_internal.init.77", "base/pgsql_tmp/pgsql_tmp7.0")
    write(tmp_path, "base/5/pgsql_tmp9", "current_logfiles", "postgresql.auto.conf", "base/5/pg_filenode.map")
    assert files(tmp_path) == ["base/5/pg_filenode.map", "current_logfiles", "postgresql.auto.conf"]


def test_what_is_named_is_left_out_at_the_top_alone(tmp_path: Path) -> None:
    write(tmp_path, ".pitr-kept/PG_VERSION", ".pitr-kept/base/5/1", "base/5/2", "base/.pitr-kept")
    listed = list_data_directory(os.fsencode(tmp_path), VERSION, but=[b".pitr-kept"])
    assert sorted(entry.path for entry in listed) == [b"base", b"base/.pitr-kept", b"base/5", b"base/5/2"]


def test_of_unlogged_relations_only_the_init_fork_is_copied(tmp_path: Path) -> None:
    write(
        tmp_path, "base/5/16384", "base/5/16384.1", "base/5/16384_fsm", "base/5/16384_vm", "base/5/16384_init"
    )
    write(tmp_path, "base/5/16385", "base/5/16385_vm", "base/6/16384")
    write(tmp_path, "base/5/t4_16390", "base/5/t4_16390_fsm", "base/5/t4_16390.1", "base/5/t4_note")
    assert files(tmp_path) == [
        "base/5/16384_init",
        "base/5/16385",
        "base/5/16385_vm",
        "base/5/t4_note",
        "base/6/16384",
    ]


def test_tablespaces_are_links_and_only_this_servers_directory_is_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "data", tmp_path / "space"
    write(outside, "PG_17_202406281/5/16400", "PG_16_202307071/5/1", "stranger")
    write(root, "pg_tblspc/16500/PG_17_202406281/5/16401", "PG_VERSION")
    (root / "pg_tblspc/16499").symlink_to(outside)
    assert [entry for entry in listing(root) if not isinstance(entry, DataDirectory)] == [
        DataFile(b"PG_VERSION", 1, None),
        TablespaceLink(b"pg_tblspc/16499", 16499),
        LeftOut(b"pg_tblspc/16499/PG_16_202307071", "not this server's directory in the tablespace"),
        DataFile(b"pg_tblspc/16499/PG_17_202406281/5/16400", 1, RelationFile(16499, 5, 16400, "main", 0)),
        LeftOut(b"pg_tblspc/16499/stranger", "not this server's directory in the tablespace"),
        DataFile(b"pg_tblspc/16500/PG_17_202406281/5/16401", 1, RelationFile(16500, 5, 16401, "main", 0)),
    ]
    assert "pg_tblspc/16500" in directories(root)


def test_a_linked_pg_wal_becomes_a_directory(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(tmp_path / "wal", "000000010000000000000001", "archive_status/x")
    write(root, "PG_VERSION")
    (root / "pg_wal").symlink_to(tmp_path / "wal")
    assert directories(root) == ["pg_wal", "pg_wal/archive_status"]
    assert files(root) == ["PG_VERSION"]


def test_links_sockets_and_fifos_are_said_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "postgresql.conf").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        found = listing(tmp_path)
    assert [entry.path for entry in found] == [b"pipe", b"postgresql.conf", b"sock"]
    assert all(isinstance(entry, LeftOut) for entry in found)


def test_names_that_are_no_text_are_kept_as_bytes(tmp_path: Path) -> None:
    write(tmp_path, "log/\udcff\n odd")
    assert [entry.path for entry in listing(tmp_path)] == [b"log", b"log/\xff\n odd"]


def test_what_vanishes_while_it_is_listed_is_no_error(tmp_path: Path) -> None:
    write(tmp_path, "base/5/1", "base/6/1")
    entries = list_data_directory(os.fsencode(tmp_path), VERSION)
    first = next(entries)
    assert first.path == b"base"
    next(entries)
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert [entry for entry in entries if isinstance(entry, DataFile)] == []


def test_a_data_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="gone"):
        list(list_data_directory(os.fsencode(tmp_path / "none"), VERSION))


def test_a_tree_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" for _ in range(80))).mkdir(parents=True)
    with pytest.raises(BackupFailed, match="deeply"):
        list(list_data_directory(os.fsencode(tmp_path), VERSION))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"base/5/16384", RelationFile(1663, 5, 16384, "main", 0)),
        (b"base/5/16384.12", RelationFile(1663, 5, 16384, "main", 12)),
        (b"base/5/16384_vm.1", RelationFile(1663, 5, 16384, "vm", 1)),
        (b"global/1262_fsm", RelationFile(1664, 0, 1262, "fsm", 0)),
        (b"pg_tblspc/99/PG_17_202406281/5/7_init", RelationFile(99, 5, 7, "init", 0)),
        (b"global/pg_control", None),
        (b"base/5/PG_VERSION", None),
        (b"base/5/16384.0", None),
        (b"base/5/x/16384", None),
        (b"pg_xact/0000", None),
        (b"pg_tblspc/99/5/7", None),
    ],
)
def test_a_path_says_which_relation(path: bytes, expected: RelationFile | None) -> None:
    assert parse_relation_path(path) == expected


def test_files_are_dealt_largest_first_within_the_window() -> None:
    sizes = [3, 9, 1, 7, 8, 2]
    entries = [DataFile(b"%d" % size, size, None) for size in sizes]
    others: list[DataEntry] = []
    mixed = [DataDirectory(b"d", 0o700), *entries]
    assert [file.size_bytes for file in largest_first(iter(mixed), others.append)] == [9, 8, 7, 3, 2, 1]
    assert others == [DataDirectory(b"d", 0o700)]
    in_part = largest_first(iter(entries), others.append, window=2)
    assert [file.size_bytes for file in in_part] == [9, 7, 8, 3, 2, 1]
