"""The gate as people set it up: a daemon whose only source is archive_command, and a restore of it."""

from __future__ import annotations

import grp
import shutil

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_postgres import PostgresHouse

from pitr.gate_script import archive_command
from pitr.postgres.server_user import hand_over
from pitr.wal.lsn import LSN


def gated_site(make_site: MakeSite, house: PostgresHouse, major: int) -> Site:
    """A site where nothing is streamed; the server's user reaches the gate through its group."""
    site = make_site(major, init=False)
    folder = site.folder.parent / "gate"
    settings = {
        "archive_mode": "on",
        "archive_command": archive_command(folder),
        "archive_timeout": "1s",
        "wal_keep_size": "1GB",
    }
    site.init()
    site.server.execute("SELECT pg_drop_replication_slot('pitr')")
    group = "" if house.user is None else f'\ngate_group = "{grp.getgrgid(house.user.gid).gr_name}"'
    site.set_option('source = "stream"', f'source = "archive"\ngate_dir = "{folder}"{group}')
    site.server.stop()
    site.settings = {**site.settings, **settings, "max_wal_senders": "0"}
    site.start_server()
    return site


@pytest.mark.parametrize("major", [17, pytest.param(18, marks=pytest.mark.slow)])
def test_a_restore_from_what_came_by_archive_command_holds_all_of_it(
    make_site: MakeSite, postgres_house: PostgresHouse, major: int
) -> None:
    site = gated_site(make_site, postgres_house, major)
    told = site("wal", "gate", "--json").data
    assert told["archive_command"] == site.settings["archive_command"]
    site.daemon.start()
    wait_until(lambda: site.backups(), "a base backup", timeout_s=120)
    site.server.execute("CREATE TABLE kept AS SELECT generate_series(1, 5000) AS n")
    # Killed and started again in the midst of it.
    site.daemon.kill()
    site.server.execute("INSERT INTO kept SELECT generate_series(5001, 9000)")
    site.daemon.start()
    site.server.execute("INSERT INTO kept SELECT generate_series(9001, 10000)")
    sums = site.server.execute("SELECT count(*), sum(n) FROM kept")
    name = str(site.server.value("SELECT pg_walfile_name(pg_switch_wal())"))
    archived = "SELECT coalesce(last_archived_wal, '') >= %s FROM pg_stat_archiver"
    wait_until(lambda: site.server.value(archived, name), f"{name} is archived\n{site.daemon.tail()}")
    findings = {one["id"]: one["severity"] for one in site("doctor", "--json").data["findings"]}
    assert findings["server.archive.settings"] == "ok"
    assert findings["server.archive.failing"] == "ok"
    assert "server.slot" not in findings
    assert site("wal", "list", "--gaps-only").stdout.strip() == "there is no gap"
    assert site.daemon.stop() == 0
    into = site.folder / "restored"
    site.restore("latest", into, "--start")
    restored = (into / "postmaster.pid").read_text().splitlines()

    with psycopg.connect(
        f"host={restored[4]} port={restored[3]} user=postgres dbname=postgres"
    ) as connection:
        assert connection.execute("SELECT count(*), sum(n) FROM kept").fetchall() == sums


@pytest.mark.timeout(600)
def test_a_server_that_lets_nobody_replicate_is_set_up_archived_and_goes_on_after_a_restore(
    make_site: MakeSite, postgres_house: PostgresHouse
) -> None:
    site = make_site(17, init=False)
    folder = site.folder.parent / "gate"
    site.server.stop()
    site.settings = {**site.settings, "max_wal_senders": "0", "wal_keep_size": "1GB"}
    site.start_server()
    functions = "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
    site.server.execute("CREATE ROLE plain LOGIN IN ROLE pg_read_all_settings")
    site.server.execute(f"GRANT EXECUTE ON FUNCTION {functions} TO plain")
    dsn = site.server.dsn.replace("user=postgres", "user=plain")
    refused = site.init("--pg", dsn, exit_code=None)
    assert refused.exit_code != 0
    assert "REPLICATION" in refused.stderr
    assert not site.config.exists()

    made = site.init("--pg", dsn, "--wal-source", "archive")
    assert "wal gate" in made.stdout
    assert site.server.value("SELECT count(*) FROM pg_replication_slots") == 0
    lines = ['source = "archive"', f'gate_dir = "{folder}"']
    if postgres_house.user is not None:
        lines.append(f'gate_group = "{grp.getgrgid(postgres_house.user.gid).gr_name}"')
    site.set_option('source = "archive"', "\n".join(lines))
    site("wal", "gate")
    site.settings = {
        **site.settings,
        "archive_mode": "on",
        "archive_command": archive_command(folder),
        "archive_timeout": "1s",
    }
    site.server.stop()
    site.start_server()
    site.daemon.start()
    wait_until(lambda: site.backups(), f"a base backup\n{site.daemon.tail()}", timeout_s=120)
    site.server.execute("CREATE TABLE kept AS SELECT generate_series(1, 5000) AS n")
    moment = f"lsn:{site.insert_lsn()}"
    site.server.execute("INSERT INTO kept VALUES (-1)")
    wait_archived(site)
    findings = {one["id"]: one for one in site("doctor", "--json").data["findings"]}
    assert not [one for one in findings.values() if one["severity"] == "fail"]
    assert findings["server.archive.settings"]["severity"] == "ok"
    for check in ("slot", "grant.replication", "max_slot_wal_keep_size", "wal_disk", "max_wal_senders"):
        assert f"server.{check}" not in findings
    assert site.daemon.stop() == 0

    # Restored and promoted it goes on in an epoch of its own, and its past is seen in its files.
    site.server.stop()
    shutil.rmtree(site.server.data_dir)
    site.restore(moment, site.server.data_dir)
    hand_over(site.server.data_dir, postgres_house.user)
    site.start_server()
    wait_until(lambda: not site.server.value("SELECT pg_is_in_recovery()"), "the promotion")
    # What the server's past self handed over last is there still, and no WAL of the new epoch.
    stale = folder / "todo" / "0000000100000000000000FF"
    stale.write_bytes(bytes(16 << 20))
    again = site("init", "--identity", site.identity, "--json").data
    assert not stale.exists()
    assert again["is_new_epoch"] is True
    assert again["parent"]["timeline"] == "00000001"
    assert site.server.value("SELECT count(*) FROM pg_replication_slots") == 0
    site.daemon.start()
    try:
        # PostgreSQL asks for a file that was refused thrice only a minute later.
        wait_until(lambda: len(site.backups()) == 2, "a base backup", timeout_s=240)
    finally:
        print(site.daemon.tail())
    # After the backup, which ends its segment: of an empty one there is nothing to wait for.
    site.server.execute("INSERT INTO kept VALUES (0)")
    wait_archived(site)
    assert site.daemon.stop() == 0
    restored = site.restore("latest", site.folder / "restored", "--start").data
    assert restored["plan"]["archive"].endswith("00000002")
    with psycopg.connect(restored["dsn"]) as connection:
        assert connection.execute("SELECT count(*), min(n) FROM kept").fetchall() == [(5001, 0)]


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_what_archive_command_brought_is_the_past_of_restores_of_restores(
    make_site: MakeSite, postgres_house: PostgresHouse
) -> None:
    """Each ends at a segment's boundary, so the server has nothing of the timeline that it left."""
    site = gated_site(make_site, postgres_house, 17)
    site("wal", "gate")
    site.server.execute("CREATE TABLE kept (n int)")
    for generation in (1, 2, 3):
        site.daemon.start()
        wait_until(lambda: len(site.backups()) == generation, "a base backup", timeout_s=240)  # noqa: B023
        site.server.execute("INSERT INTO kept VALUES (%s)", generation)
        wait_archived(site)
        assert site.daemon.stop() == 0
        # An orderly stop waits for an archiver that nobody answers.
        site.server.kill()
        shutil.rmtree(site.server.data_dir)
        site.restore("latest", site.server.data_dir)
        hand_over(site.server.data_dir, postgres_house.user)
        site.start_server()
        wait_until(lambda: not site.server.value("SELECT pg_is_in_recovery()"), "the promotion")
        certificate = site.server.data_dir.with_name(f"{site.server.data_dir.name}.recovery-certificate.json")
        kept = certificate.with_name("kept.json")
        if generation == 2:
            # Elsewhere: then it must be named.
            certificate.rename(kept)
        more = ["--certificate", kept] if generation == 2 else []
        # On a new host: where the key is still there it goes on in the same archive, as after a failover.
        (site.config.parent / "signing.key").unlink()
        made = site("init", "--identity", site.identity, *more, "--json").data
        assert made["is_new_epoch"] is True
        parent = made["parent"]
        assert (parent["epoch"], parent["timeline"]) == (generation, f"{generation:08X}")
        assert LSN.parse(parent["lsn"]).offset % (16 << 20) == 0
        assert site("timeline", "--json").data["is_whole"] is True
    # Before its first backup: what is restored then comes by the way that was proven.
    done = site.restore(f"lsn:{parent['lsn']}", site.folder / "again", "--start")
    with psycopg.connect(done.data["dsn"]) as connection:
        assert connection.execute("SELECT n FROM kept ORDER BY n").fetchall() == [(1,), (2,), (3,)]


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_failover_that_lost_what_was_handed_over_is_adopted(
    make_site: MakeSite, postgres_house: PostgresHouse
) -> None:
    site = gated_site(make_site, postgres_house, 17)
    site("wal", "gate")
    site.daemon.start()
    wait_until(lambda: site.backups(), "a base backup", timeout_s=120)
    site.server.execute("CREATE TABLE kept (v text)")
    site.server.execute("INSERT INTO kept VALUES ('1 both have')")
    wait_archived(site)
    site.server.stop()
    # Nobody may replicate here, so a copy of the files stands for the standby that is promoted.
    standby = site.server.data_dir.with_name("standby")
    shutil.copytree(site.server.data_dir, standby, symlinks=True)
    site.start_server()
    site.server.execute("INSERT INTO kept VALUES ('2 only in the archive')")
    wait_archived(site)
    site.server.kill()
    shutil.rmtree(site.server.data_dir)
    standby.rename(site.server.data_dir)
    (site.server.data_dir / "standby.signal").touch()
    hand_over(site.server.data_dir, postgres_house.user)
    site.start_server()
    site.server.instance.promote()
    wait_until(lambda: not site.server.value("SELECT pg_is_in_recovery()"), "the promotion")
    site.server.execute("INSERT INTO kept VALUES ('3 after')")
    wait_until(lambda: "00000002.history is not acknowledged" in site.daemon.tail(), "the refusal")
    site.daemon.check_alive()
    assert "pitr adopt --as failover" in site.daemon.tail()
    assert site.daemon.stop() == 0

    decided = site("adopt", "--as", "failover", "--confirm", "--json").data
    assert (decided["timeline"], decided["following"]) == ("00000001", "00000002")
    site.daemon.start()
    name = str(site.server.value("SELECT pg_walfile_name(pg_switch_wal())"))
    archived = "SELECT coalesce(last_archived_wal, '') >= %s FROM pg_stat_archiver"
    # PostgreSQL asks for a file that was refused thrice only a minute later.
    wait_until(lambda: site.server.value(archived, name), f"{name}\n{site.daemon.tail()}", timeout_s=240)
    assert "the operator decided" in site.daemon.tail()
    assert site.daemon.stop() == 0
    orphaned = [one for one in site("wal", "list", "--json").data["stretches"] if one["kind"] == "orphaned"]
    assert [(one["start"], one["end"]) for one in orphaned] == [
        (decided["left_at"], decided["orphaned"]["end"])
    ]
    for number, (more, expected) in enumerate(
        [
            ([], ["1 both have", "3 after"]),
            (["--timeline", "1"], ["1 both have", "2 only in the archive"]),
        ]
    ):
        into = site.folder / f"restored{number}"
        done = site.restore("latest", into, "--start", *more)
        with psycopg.connect(done.data["dsn"]) as connection:
            found = connection.execute("SELECT v FROM kept ORDER BY 1").fetchall()
        assert [row[0] for row in found] == expected


def wait_archived(site: Site) -> None:
    """Return once PostgreSQL was told that all of its WAL until now is durable."""
    name = str(site.server.value("SELECT pg_walfile_name(pg_switch_wal())"))
    archived = "SELECT coalesce(last_archived_wal, '') >= %s FROM pg_stat_archiver"
    wait_until(lambda: site.server.value(archived, name), f"{name} is archived\n{site.daemon.tail()}")


@pytest.mark.slow
def test_doctor_says_what_is_wrong_with_the_archiver(
    make_site: MakeSite, postgres_house: PostgresHouse
) -> None:
    site = gated_site(make_site, postgres_house, 17)

    def severity(check: str) -> str:
        found = {
            one["id"]: one["severity"] for one in site("doctor", "--json", exit_code=None).data["findings"]
        }
        return str(found.get(check))

    site("wal", "gate")
    name = str(site.server.value("SELECT pg_walfile_name(pg_switch_wal())"))
    failed = "SELECT last_failed_wal IS NOT NULL FROM pg_stat_archiver"
    wait_until(lambda: site.server.value(failed), f"{name} to fail: no daemon is there", timeout_s=90)
    assert severity("server.archive.failing") == "fail"
    site.server.stop()
    site.settings = {**site.settings, "archive_command": "/bin/true", "max_wal_senders": "5"}
    site.start_server()
    assert severity("server.archive.settings") == "fail"
    site.server.execute("SELECT pg_create_physical_replication_slot('pitr')")
    assert severity("server.archive.slot") == "fail"
