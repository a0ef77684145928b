"""Where a restore may write, how files come to their place, and what the journal keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pitr.errors import AlreadyRunning, RestoreRefused
from pitr.postgres.server_user import ServerUser
from pitr.recover import private_settings
from pitr.restore_again import interrupted_aim
from pitr.restore_directory import moved_map
from pitr.restore_journal import Journal, WorkDirectory
from pitr.restore_place import check_place, find_place
from pitr.restore_staged import RestorePlace, StagedDirectory

MIB = 1024 * 1024


def check(target: Path, tablespaces: dict[int, Path] | None = None, **options: object) -> RestorePlace:
    chosen: dict[str, object] = {"size_bytes": MIB, "spool_bytes": MIB, "user": None, "is_claimed": False}
    return check_place(target, tablespaces or {}, **{**chosen, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["new", "empty", "mounted"])
def test_a_missing_or_empty_directory_may_be_restored_into(tmp_path: Path, name: str) -> None:
    if name != "new":
        (tmp_path / name).mkdir()
    if name == "mounted":
        (tmp_path / name / "lost+found").mkdir()
    place = check(tmp_path / name)
    assert place.work.path == tmp_path / f"{name}.pitr"
    assert not place.work.path.exists()


def test_whatever_holds_anything_is_refused(tmp_path: Path) -> None:
    for name, entry, words in [("data", "PG_VERSION", "cluster"), ("other", "file", "not empty")]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / entry).touch()
        with pytest.raises(RestoreRefused, match=words):
            check(folder)
        with pytest.raises(RestoreRefused, match=words):
            check(tmp_path / "new", {1: folder})
    (tmp_path / "file").touch()
    with pytest.raises(RestoreRefused, match="not a directory"):
        check(tmp_path / "file")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(RestoreRefused, match="link to nothing"):
        check(tmp_path / "link")


@pytest.mark.parametrize("path", ["/", "/somewhere/..", "/a/two\nlines", "/a/\x1bescape", "/a/\udcff"])
def test_a_path_that_can_be_no_data_directory_is_refused_before_anything_is_fetched(path: str) -> None:
    with pytest.raises(RestoreRefused) as refused:
        check(Path(path))
    # It must be possible to print what was refused.
    assert str(refused.value).isprintable()
    with pytest.raises(RestoreRefused):
        interrupted_aim(Path(path), replaces=False)


def test_a_link_is_refused_for_the_directory_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(RestoreRefused, match="is a link") as refused:
        check(tmp_path / "link")
    assert refused.value.hint == f"name where it leads: --into {tmp_path / 'real'}"
    # A tablespace and WAL come into the directory itself.
    check(tmp_path / "data", {1: tmp_path / "link"})


def test_places_must_not_lie_in_a_cluster_or_in_each_other(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster"
    (cluster / "deep" / "er").mkdir(parents=True)
    (cluster / "PG_VERSION").touch()
    with pytest.raises(RestoreRefused, match="data directory"):
        check(cluster / "deep" / "er" / "new")
    (tmp_path / "way").symlink_to(cluster / "deep")
    with pytest.raises(RestoreRefused, match="data directory"):
        check(tmp_path / "way" / "er")
    (tmp_path / "data").mkdir()
    with pytest.raises(RestoreRefused, match="restored as well"):
        check(tmp_path / "data", {1: tmp_path / "data" / "space"})
    with pytest.raises(RestoreRefused, match="given twice"):
        check(tmp_path / "data", {1: tmp_path / "space", 2: tmp_path / "space"})
    with pytest.raises(RestoreRefused, match="does not exist"):
        check(tmp_path / "no" / "such" / "folder")


def test_a_disk_without_room_is_refused_in_bytes(tmp_path: Path) -> None:
    with pytest.raises(RestoreRefused, match="not enough room") as refused:
        check(tmp_path / "data", size_bytes=1 << 60)
    assert str((1 << 60) * 102 // 100 + MIB) in (refused.value.detail or "")


def test_the_servers_user_must_be_able_to_reach_the_place(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    user = ServerUser(os.getuid() + 4321, os.getgid() + 4321)
    with pytest.raises(RestoreRefused, match="cannot pass through"):
        check(closed / "data", user=user)


def test_files_are_placed_whole_and_placing_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data.pitr").mkdir()
    place = find_place(tmp_path / "data", {7: tmp_path / "space"})
    for directory in place.directories:
        directory.begin(None)
        (directory.staging / "left over").touch()
        directory.begin(None)
        (directory.staging / "file").write_text("content")
        (directory.staging / "folder").mkdir()
    for _ in range(2):
        for directory in place.directories:
            directory.place()
    for folder in ("data", "space"):
        assert sorted(entry.name for entry in (tmp_path / folder).iterdir()) == ["file", "folder"]


def test_placing_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    directory = StagedDirectory(tmp_path, tmp_path / ".pitr-partial")
    directory.begin(None)
    for name in ("a", "b"):
        (directory.staging / name).touch()
    (directory.staging / "a").rename(tmp_path / "a")
    directory.place()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


def test_what_lets_a_server_start_is_placed_last(tmp_path: Path) -> None:
    directory = StagedDirectory(tmp_path, tmp_path / ".pitr-partial")
    directory.begin(None)
    for name in ("PG_VERSION", "backup_label", "base"):
        (directory.staging / name).mkdir()
    # It cannot be moved there, so the run ends in the midst.
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "foreign").touch()
    with pytest.raises(OSError):
        directory.place()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".pitr-partial", "backup_label", "base"]


@pytest.mark.parametrize("is_inside", [False, True])
def test_refused_files_are_set_aside_and_the_place_can_be_used_again(tmp_path: Path, is_inside: bool) -> None:
    final, work = tmp_path / "data", tmp_path / "data.pitr"
    work.mkdir()
    directory = StagedDirectory(final, final / ".pitr-partial" if is_inside else work / "partial")
    directory.begin(None)
    (directory.staging / "PG_VERSION").touch()
    directory.place()
    aside = directory.set_aside(work / "refused")
    assert (aside / "PG_VERSION").exists()
    assert not (final / "PG_VERSION").exists()
    check(final, is_claimed=True)
    directory.begin(None)
    directory.place()
    assert not any(final.iterdir())


def test_the_journal_is_read_back_and_a_strange_folder_is_refused(tmp_path: Path) -> None:
    work = WorkDirectory.of(tmp_path / "data")
    assert work.read() is None
    work.path.mkdir()
    assert work.read() is None
    # Killed while the first one was written.
    (work.path / "pitr-restore.json.new").write_text('{"format": "pitr-')
    assert work.read() is None
    work.write(Journal("abc", "placing"))
    assert work.read() == Journal("abc", "placing")
    (work.path / "spool").mkdir()
    (work.path / "spool" / "segment").touch()
    work.clear()
    assert [entry.name for entry in work.path.iterdir()] == ["pitr-restore.json"]
    for damage in ("", "[]", "{}", '{"format": "pitr-restore/1", "plan": "", "phase": "odd"}'):
        (work.path / "pitr-restore.json").write_text(damage)
        with pytest.raises(RestoreRefused, match="no work directory"):
            work.read()


def test_only_one_run_holds_the_work_directory(tmp_path: Path) -> None:
    work = WorkDirectory.of(tmp_path / "data")
    with work.locked(), pytest.raises(AlreadyRunning), WorkDirectory(work.path).locked():
        pass
    with work.locked():
        work.remove()


def test_whether_a_run_holds_the_work_directory_is_seen_without_making_it(tmp_path: Path) -> None:
    work = WorkDirectory.of(tmp_path / "data")
    work.check_unlocked()
    assert not work.path.exists()
    with work.locked(), pytest.raises(AlreadyRunning, match="another restore into this directory is running"):
        work.check_unlocked()
    work.check_unlocked()


def test_the_folder_of_the_work_directory_must_be_writable_too(server_tmp_path: Path) -> None:
    target = server_tmp_path / "data"
    target.mkdir(mode=0o777)
    target.chmod(0o777)
    server_tmp_path.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        # Root may write everywhere; permissions are judged for the real user.
        os.setreuid(65534, -1)
    try:
        with pytest.raises(RestoreRefused, match=f"no permission to write in {server_tmp_path}$"):
            check(target)
    finally:
        if is_root:
            os.setreuid(0, 0)
        server_tmp_path.chmod(0o755)


def test_a_tablespace_map_is_rewritten_for_moved_tablespaces_only() -> None:
    original = b"16385 /old/a\n16386 /with\\\nnewline and \\\\ back\n16387 /stays\n"
    moved = moved_map(original, {16385: Path("/new/a"), 16386: Path("/new\nline")})
    assert moved == b"16385 /new/a\n16386 /new\\\nline\n16387 /stays\n"


def test_the_private_settings_let_nothing_out_and_keep_the_primarys_limits(tmp_path: Path) -> None:
    primary = {"max_connections": "500", "max_wal_senders": "2", "shared_preload_libraries": "evil"}
    settings = private_settings(17, primary, tmp_path, tmp_path / "data", {"fsync": "off"})
    assert settings["max_connections"] == "500"
    assert settings["max_wal_senders"] == "10"
    assert settings["archive_mode"] == "off"
    assert settings["listen_addresses"] == settings["shared_preload_libraries"] == ""
    assert settings["primary_conninfo"] == settings["synchronous_standby_names"] == ""
    assert settings["fsync"] == "off"
    assert Path(settings["config_file"]).parent == Path(settings["hba_file"]).parent == tmp_path
