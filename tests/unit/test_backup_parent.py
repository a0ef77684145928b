"""The host's note of what its last backups hold."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pitr.backup_parent import NOTES_KEPT, NoteWriter, ServerManifestFile, open_server_manifest, read_note
from pitr.errors import MalformedValue

ONE, TWO = "20261123T130500Z-full-0a0b0c0d", "20261123T140500Z-incr-0a0b0c0e"
PATHS = [b"base/5/%d" % number for number in range(1000)] + [b"odd/\xff"]
DATABASES = {1: "730", 5: "4294967295"}


def write(folder: Path, backup: str = ONE, paths: list[bytes] = PATHS) -> Path:
    note = NoteWriter()
    for path in paths:
        note.add(path)
    note.write(folder, backup, DATABASES)
    return folder / f"{backup}.files"


def test_a_note_says_which_files_the_backup_holds(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "notes")
    note = read_note(tmp_path / "deep" / "notes", ONE)
    assert note is not None
    assert (note.backup, note.databases) == (ONE, DATABASES)
    assert all(note.holds(path) for path in PATHS)
    assert not any(note.holds(path) for path in (b"", b"base/5/1000", b"base/5/1.1", b"base/5/1_fsm"))


def test_a_note_of_no_files_holds_none(tmp_path: Path) -> None:
    write(tmp_path, paths=[])
    note = read_note(tmp_path, ONE)
    assert note is not None
    assert not note.holds(b"base/5/1")


def test_a_lost_note_is_none(tmp_path: Path) -> None:
    assert read_note(tmp_path, ONE) is None
    assert read_note(tmp_path / "nowhere", ONE) is None
    write(tmp_path).unlink()
    assert read_note(tmp_path, ONE) is None


@pytest.mark.parametrize("at", [0, 40, 200, 5000, -40, -1])
def test_a_flipped_bit_is_noticed(tmp_path: Path, at: int) -> None:
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(MalformedValue, match="damaged"):
        read_note(tmp_path, ONE)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 5000])
def test_a_cut_note_is_noticed(tmp_path: Path, size: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MalformedValue):
        read_note(tmp_path, ONE)


def test_more_behind_a_note_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(16))
    with pytest.raises(MalformedValue):
        read_note(tmp_path, ONE)


def test_the_note_of_another_backup_is_refused(tmp_path: Path) -> None:
    write(tmp_path).rename(tmp_path / f"{TWO}.files")
    with pytest.raises(MalformedValue, match=f"not the note of backup {TWO}"):
        read_note(tmp_path, TWO)


@pytest.mark.parametrize("backup", ["", "../../etc/passwd", ONE + "/x", ONE.upper()])
def test_a_name_that_is_no_backups_id_opens_nothing(tmp_path: Path, backup: str) -> None:
    with pytest.raises(MalformedValue):
        read_note(tmp_path, backup)


def test_only_the_newest_notes_are_kept_and_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    ids = [f"20261123T{hour:02d}0500Z-full-0a0b0c0d" for hour in range(10, 15)]
    (tmp_path / f"{ids[0]}.new").write_bytes(b"half")
    for backup in ids:
        write(tmp_path, backup)
    assert NOTES_KEPT == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{backup}.files" for backup in ids[-2:]]


def test_a_clock_that_was_set_back_does_not_cost_the_note_that_was_just_written(tmp_path: Path) -> None:
    for hour in (20, 21, 22):
        write(tmp_path, f"20261123T{hour}0500Z-full-0a0b0c0d")
    write(tmp_path, ONE)
    assert read_note(tmp_path, ONE) is not None
    assert len(list(tmp_path.iterdir())) == NOTES_KEPT


def keep_server_manifest(folder: Path, backup: str, *pieces: bytes) -> None:
    file = ServerManifestFile(folder, backup)
    for piece in pieces:
        file.add(piece)
    file.keep()
    file.discard()


def test_nor_the_servers_manifest(tmp_path: Path) -> None:
    for hour in (20, 21, 22):
        keep_server_manifest(tmp_path, f"20261123T{hour}0500Z-full-0a0b0c0d", b"later")
    keep_server_manifest(tmp_path, ONE, b"now", b" and then")
    with open_server_manifest(tmp_path, ONE) as file:
        assert file.read() == b"now and then"
    assert len(list(tmp_path.iterdir())) == NOTES_KEPT


def test_the_servers_manifest_of_a_backup_that_failed_leaves_nothing(tmp_path: Path) -> None:
    keep_server_manifest(tmp_path, ONE, b"good")
    file = ServerManifestFile(tmp_path, TWO)
    file.add(b"half")
    file.discard()
    file.discard()
    assert [path.name for path in tmp_path.iterdir()] == [f"{ONE}.server-manifest"]


def test_a_servers_manifest_that_cannot_be_written_is_told_at_the_end(tmp_path: Path) -> None:
    """The backup is good without it; the next one will be full."""
    (tmp_path / "notes").write_text("no directory")
    file = ServerManifestFile(tmp_path / "notes", ONE)
    file.add(b"one")
    file.add(b"two")
    with pytest.raises(OSError, match="notes"):
        file.keep()
    with pytest.raises(OSError, match="sent no manifest"):
        ServerManifestFile(tmp_path, ONE).keep()


def test_a_note_is_for_its_owner_only(tmp_path: Path) -> None:
    write(tmp_path / "notes")
    assert (tmp_path / "notes").stat().st_mode & 0o777 == 0o700


def test_paths_of_several_threads_are_all_noted(tmp_path: Path) -> None:
    note = NoteWriter()
    parts = [PATHS[number::4] for number in range(4)]

    def add(paths: list[bytes]) -> None:
        for path in paths:
            note.add(path)

    threads = [threading.Thread(target=add, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    note.write(tmp_path, ONE, {})
    found = read_note(tmp_path, ONE)
    assert found is not None
    assert all(found.holds(path) for path in PATHS)
