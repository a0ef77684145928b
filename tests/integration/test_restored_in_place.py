"""A cluster that is restored in place, once and again: each branch is told from all others."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from fix_cli import MakeSite, Site
from fix_in_place import renew, restore_in_place
from fix_postgres import table_digests

from cli.key_files import read_signing_key
from pitr.layout import ArchiveId
from pitr.pipeline.sign import Verifier
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, history_file_name
from storage.local import DirectoryStore

MAJORS = [pytest.param(17, id="pg17"), pytest.param(18, id="pg18")]


def timeline(site: Site) -> int:
    return int(str(site.server.value("SELECT timeline_id FROM pg_control_checkpoint()")))


def archive(site: Site, epoch: int) -> ArchiveId:
    return ArchiveId(
        int(str(site.server.value("SELECT system_identifier::text FROM pg_control_system()"))), epoch
    )


def rows(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [str(row[0]) for row in connection.execute("SELECT v FROM a ORDER BY 1").fetchall()]


def write_wal(site: Site, segments: int) -> None:
    for _ in range(segments):
        site.server.execute("SELECT pg_switch_wal()")
        site.server.execute("CREATE TABLE IF NOT EXISTS filler (i int)")
        site.server.execute("INSERT INTO filler VALUES (1)")


def hide_histories(site: Site, one: ArchiveId) -> list[tuple[Path, Path]]:
    """Take an epoch's history files away, as if the restore had run where nobody knew of it."""
    moved = []
    for region in site.regions:
        folder = region.path / "objects" / "history" / str(one)
        away = region.path.with_name(f"{region.name}.history")
        folder.rename(away)
        moved.append((away, folder))
    return moved


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.slow
def test_two_restores_to_one_target_are_two_branches(make_site: MakeSite, major: int, is_known: bool) -> None:
    site = make_site(major, settings={"autovacuum": "off"})
    site.server.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    target = f"lsn:{site.wait_durable()}"
    site.server.execute("INSERT INTO a VALUES ('original, after the target')")
    site.wait_durable()
    origin = ["--timeline", "1", "--archive", archive(site, 1)]

    restore_in_place(site, target, *origin)
    assert timeline(site) == 2
    assert renew(site).data["archive"] == str(archive(site, 2))
    site.start_daemon(backups=2)
    site.server.execute("INSERT INTO a VALUES ('branch 1')")
    in_branch_1 = site.wait_durable()
    write_wal(site, 4)
    site.wait_durable()
    site.daemon.stop()

    hidden = [] if is_known else hide_histories(site, archive(site, 2))
    restore_in_place(site, target, *origin)
    for away, folder in hidden:
        away.rename(folder)
    # The number is free only where nobody knows of the first branch; then the WAL tells them apart.
    site.server.execute("CHECKPOINT")
    assert timeline(site) == (3 if is_known else 2)
    site.server.execute("INSERT INTO a VALUES ('branch 2')")
    write_wal(site, 3)
    made = renew(site).data
    assert made["archive"] == str(archive(site, 3))
    number = TimelineId(timeline(site))
    own = (site.server.data_dir / "pg_wal" / history_file_name(number)).read_bytes()
    left_at = TimelineHistory.parse(number, own).switches[0].lsn
    assert left_at < in_branch_1
    assert (made["parent"]["timeline"], made["parent"]["lsn"]) == ("00000001", str(left_at))
    site.start_daemon(backups=3)
    site.wait_durable()

    # The same LSN in the newest epoch is a moment of branch 2, whose WAL reaches as far.
    into = site.folder / "there"
    done = site.restore(f"lsn:{in_branch_1}", into, "--start")
    assert "branch 1" not in rows(done.data["dsn"])
    site.examine(into)
    for one, into, expected in (
        (2, site.folder / "first", ["branch 1"]),
        (3, site.folder / "second", ["branch 2"]),
    ):
        done = site.restore("latest", into, "--start", "--archive", archive(site, one))
        assert rows(done.data["dsn"]) == expected
        site.examine(into)


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.slow
def test_the_way_that_a_restore_in_place_tells_is_one(make_site: MakeSite, major: int) -> None:
    site = make_site(major, settings={"autovacuum": "off", "summarize_wal": "on"})
    key = site.config.parent / "signing.key"
    config = site.config.read_text()
    site.server.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    target = f"lsn:{site.wait_durable()}"
    assert "nothing to do" in site("init", "--identity", site.identity).stdout
    assert renew(site).data["is_new_epoch"] is False
    site.server.execute("INSERT INTO a VALUES ('to be lost')")
    site.wait_durable()
    old = read_signing_key(key).public

    done = restore_in_place(site, target)
    assert any("pitr init --identity FILE" in step for step in done.data["next"])
    site.daemon.start()
    assert site.daemon._process is not None
    assert site.daemon._process.wait(60) == 1
    assert "PITR-1002" in site.daemon.tail()
    assert "pitr adopt --as restore --identity FILE" in site.daemon.tail()

    made = renew(site).data
    assert (made["archive"], made["is_new_epoch"]) == (str(archive(site, 2)), True)
    assert read_signing_key(key).public != old
    kept = key.with_name("signing.key.epoch-1")
    assert read_signing_key(kept).public == old
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert site.config.read_text() == config
    assert renew(site).data["is_new_epoch"] is False

    site.start_daemon(backups=2)
    site.server.execute("INSERT INTO a VALUES ('kept')")
    assert site("backup", "--json").data["backup"]["type"] == "incr"
    site.server.execute("INSERT INTO a VALUES ('kept as well')")
    site.wait_durable()
    expected = table_digests(site.server.dsn)
    into = site.folder / "again"
    done = site.restore("latest", into, "--start")
    assert table_digests(done.data["dsn"]) == expected


# Each step is some stride's; a run that is killed goes on from what the one before it left.
@pytest.mark.parametrize("stride", [3, 1])
@pytest.mark.slow
def test_a_host_whose_restored_server_got_a_new_epoch_is_killed_on_the_way(
    make_site: MakeSite, stride: int
) -> None:
    site = make_site(17, settings={"autovacuum": "off"})
    key = site.config.parent / "signing.key"
    site.start_daemon()
    target = f"lsn:{site.wait_durable()}"
    site.server.execute("CREATE TABLE a AS SELECT 'lost'::text AS v")
    site.wait_durable()
    old = read_signing_key(key).public
    restore_in_place(site, target)
    child = [
        "import os, signal, sys",
        "left = int(sys.argv.pop(1))",
        "def hook(event, arguments):",
        "    global left",
        "    names = str(arguments)",
        "    is_change = event in ('os.rename', 'os.link', 'os.remove', 'tempfile.mkstemp')",
        "    if is_change and ('signing.key' in names or '/epochs/' in names):",
        "        left -= 1",
        "        if left == 0: os.kill(os.getpid(), signal.SIGKILL)",
        "sys.addaudithook(hook)",
        "from cli.main import run_cli",
        "sys.exit(run_cli(sys.argv[1:]))",
    ]
    line = ["-c", str(site.config), "init", "--identity", str(site.identity)]
    for step in range(1, 200, stride):
        words = [sys.executable, "-c", "\n".join(child), str(step), *line]
        code = subprocess.run(words, cwd=site.folder, env=site.program.env(), timeout=120, check=False)
        keys = [
            read_signing_key(one).public
            for one in key.parent.glob("signing.key*")
            if ".part-" not in one.name
        ]
        assert old in keys, step
        if code.returncode == 0:
            break
        assert code.returncode == -9
    else:
        pytest.fail("it does not end")
    assert step > 5
    identity_root = Verifier.parse(renew(site).data["root"])
    for region in site.regions:
        repository = Repository.open(DirectoryStore(region.path), identity_root)
        assert [one.epoch for one in repository.archives()] == [1, 2]
        assert repository.verifier(archive(site, 2)) == read_signing_key(key).public
    made = sorted(one.name for one in key.parent.glob("signing.key*"))
    assert made == ["signing.key", "signing.key.epoch-1"]
    site.start_daemon(backups=2)
    assert site.wait_durable() > LSN.parse(target.removeprefix("lsn:"))


def test_a_host_that_was_superseded_takes_over_again_with_a_new_key(make_site: MakeSite) -> None:
    site = make_site(17)
    key = site.config.parent / "signing.key"
    old = read_signing_key(key).public
    words: list[object] = ["init", "--pg", site.server.dsn, "--identity", site.identity, "--non-interactive"]
    words += ["--dir", site.folder / "second", "--metrics", "off", "--quorum", 2]
    for region in site.regions:
        words += ["--region", f"{region.name}={region.url}"]
    site.program(*words)
    assert renew(site).data["archive"] == str(archive(site, 3))
    assert read_signing_key(key).public != old
    assert read_signing_key(key.with_name("signing.key.epoch-1")).public == old
    assert renew(site).data["is_new_epoch"] is False
