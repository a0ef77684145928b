"""``pitr adopt`` as an operator uses it after a failover that lost WAL, and after a restore."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_patroni_rest import IDENTIFIER, rest_member
from fix_postgres import PostgresFactory, RunningPostgres, majors
from fix_standby import caught_up, make_standby

from pitr.wal.lsn import LSN

SETTINGS = {"wal_keep_size": "1GB", "autovacuum": "off"}


def rows(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [str(row[0]) for row in connection.execute("SELECT v FROM a ORDER BY 1").fetchall()]


def wait_archived(site: Site, server: RunningPostgres) -> None:
    """Wait until a server, perhaps not the site's first one, was told that all of its WAL is durable."""
    end = server.value("SELECT pg_current_wal_flush_lsn()")

    def is_there() -> bool:
        site.daemon.check_alive()
        sql = "SELECT flush_lsn >= %s::pg_lsn FROM pg_stat_replication WHERE application_name = 'pitr'"
        return (True,) in server.execute(sql, end)

    wait_until(is_there, f"{end} is durable")


def adoptions(site: Site) -> list[dict[str, Any]]:
    events = site("log", "--json").data["events"]
    return [one for one in events if one["event"] == "adopted"]


def lose_wal(
    site: Site, postgres_factory: PostgresFactory, before: Callable[[], None] = lambda: None
) -> RunningPostgres:
    """Let the primary die with commits that the archive has and the standby, promoted then, has not.

    ``before`` is called when all have the same still.
    """
    server = site.server
    server.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    standby = make_standby(postgres_factory, server, SETTINGS)
    server.execute("INSERT INTO a VALUES ('1 before')")
    site.wait_durable()
    wait_until(lambda: rows(standby.dsn) == ["1 before"], "the standby has it")
    before()
    standby.stop()
    server.execute("INSERT INTO a VALUES ('2 only in the archive')")
    site.wait_durable()
    server.kill()
    standby.start(SETTINGS)
    standby.instance.promote()
    wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
    standby.execute("INSERT INTO a VALUES ('3 after')")
    site.set_option(f'dsn = "{server.dsn}"', f'dsn = "{standby.dsn}"')
    return standby


@pytest.mark.parametrize("major", majors(slow=[18]), ids=lambda major: f"pg{major}")
def test_a_failover_that_lost_wal_is_adopted_and_both_ends_are_restored(
    make_site: MakeSite, postgres_factory: PostgresFactory, major: int
) -> None:
    site = make_site(major, settings=SETTINGS)
    standby = lose_wal(site, postgres_factory)
    site.daemon.stop()

    site.daemon.start()
    wait_until(lambda: not site.daemon.is_running, "the daemon stops")
    told = site.daemon.tail()
    assert "left the archive's below its end" in told
    assert "pitr adopt --as failover" in told
    assert "pitr adopt --as restore" in told
    assert "[critical" in told

    refused = site("adopt", "--as", "failover", exit_code=2)
    assert "add --confirm" in refused.stderr
    assert "stays, for --timeline 00000001" in refused.stdout
    assert not (site.state_dir / "adopted.json").exists()
    decided = site("adopt", "--as", "failover", "--confirm", "--json").data
    assert site("adopt", "--as", "failover", "--confirm", "--json").data == decided
    assert decided["orphaned"]["timeline"] == "00000001"
    assert decided["following"] == "00000002"
    assert LSN.parse(decided["left_at"]) < LSN.parse(decided["orphaned"]["end"])

    site.daemon.start()
    wait_archived(site, standby)
    site.daemon.check_alive()
    assert "the operator decided" in site.daemon.tail()
    nothing = site("adopt", "--as", "failover", "--confirm", exit_code=6)
    assert "still runs" in nothing.stderr
    (event,) = adoptions(site)
    assert (event["facts"]["as"], event["facts"]["epoch"]) == ("failover", "1")
    assert event["facts"]["left_at"] == decided["left_at"]
    assert event["facts"]["following"] == "00000002"
    assert "decided that it was a failover" in event["message"]
    told_of = [one for one in site("log", "--json").data["events"] if one["event"] == "writers-conflict"]
    assert len(told_of) == 1
    assert "below its end" in told_of[0]["message"]
    # The run that found it has ended; the next one counts it, for the alert.
    assert site("status", "--json").data["events"]["writers-conflict"] == 1
    orphaned = [one for one in site("wal", "list", "--json").data["stretches"] if one["kind"] == "orphaned"]
    assert [(one["timeline"], one["start"], one["end"]) for one in orphaned] == [
        ("00000001", decided["left_at"], decided["orphaned"]["end"])
    ]
    assert site("catalogue", "check", "--json", exit_code=None).exit_code == 0
    standby.execute("INSERT INTO a VALUES ('4 after')")
    wait_archived(site, standby)
    assert site.daemon.stop() == 0, site.daemon.tail()
    nothing = site("adopt", "--as", "failover", "--confirm", exit_code=2)
    assert "nothing to decide" in nothing.stderr

    into = site.folder / "new"
    done = site.restore("latest", into, "--start")
    assert rows(done.data["dsn"]) == ["1 before", "3 after", "4 after"]
    site.examine(into)
    into = site.folder / "old"
    done = site.restore("latest", into, "--start", "--timeline", "1")
    assert rows(done.data["dsn"]) == ["1 before", "2 only in the archive"]
    site.examine(into)


def test_the_same_fork_may_be_a_restore_that_begins_a_new_epoch(
    make_site: MakeSite, postgres_factory: PostgresFactory
) -> None:
    site = make_site(settings=SETTINGS)
    standby = lose_wal(site, postgres_factory)
    site.daemon.stop()
    standby.execute("SELECT pg_create_physical_replication_slot('pitr', true)")
    assert "needs --identity" in site("adopt", "--as", "restore", exit_code=2).stderr
    asked = site("adopt", "--as", "restore", "--identity", site.identity, exit_code=2)
    assert "add --confirm" in asked.stderr
    made = site("adopt", "--as", "restore", "--identity", site.identity, "--confirm", "--json").data
    assert made["is_new_epoch"] is True
    assert made["parent"]["timeline"] == "00000001"
    again = site("adopt", "--as", "restore", "--identity", site.identity, "--confirm", exit_code=2)
    assert "nothing to decide" in again.stderr
    site.daemon.start()
    wait_archived(site, standby)
    wait_until(lambda: adoptions(site), "the decision is signed")
    (event,) = adoptions(site)
    assert (event["facts"]["as"], event["facts"]["left_epoch"]) == ("restore", "1")
    assert event["facts"]["timeline"] == "00000002"
    assert site("log", "--json").data["archive"] == made["archive"]
    assert site.daemon.stop() == 0, site.daemon.tail()


def test_what_contradicts_the_facts_is_refused(
    make_site: MakeSite, postgres_factory: PostgresFactory
) -> None:
    site = make_site(settings=SETTINGS)
    server = site.server
    server.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    site.wait_durable()
    assert site.daemon.stop() == 0
    server.stop()
    shutil.copytree(server.data_dir, server.data_dir.with_name("copy"))
    site.start_server()
    site.daemon.start()
    server.execute("INSERT INTO a VALUES ('1 before')")
    wait_archived(site, server)
    assert site.daemon.stop() == 0
    assert "nothing to decide" in site("adopt", "--as", "failover", "--confirm", exit_code=2).stderr

    standby = make_standby(postgres_factory, server, SETTINGS)
    site.set_option(f'dsn = "{server.dsn}"', f'dsn = "{standby.dsn}"')
    assert "is a standby" in site("adopt", "--as", "failover", "--confirm", exit_code=2).stderr
    other = postgres_factory(17, name="other")
    site.set_option(f'dsn = "{standby.dsn}"', f'dsn = "{other.dsn}"')
    assert "another cluster" in site("adopt", "--as", "failover", "--confirm", exit_code=2).stderr
    told = site("adopt", "--as", "restore", "--identity", site.identity, "--confirm", exit_code=10)
    assert "no archive of the cluster" in told.stderr
    site.set_option(f'dsn = "{other.dsn}"', f'dsn = "{server.dsn}"')

    # Somebody copies the files of yesterday back: one timeline, less of it.
    server.stop()
    shutil.rmtree(server.data_dir)
    server.data_dir.with_name("copy").rename(server.data_dir)
    site.start_server()
    refused = site("adopt", "--as", "failover", "--confirm", exit_code=2)
    assert "was no failover" in refused.stderr
    assert "--as restore" in refused.stderr


@pytest.mark.parametrize("content", ["{}", "[1]", '{"decisions": [{"as": "failover"}]}', "x" * 70_000])
def test_a_damaged_note_of_decisions_is_named_and_not_believed(make_site: MakeSite, content: str) -> None:
    from datetime import UTC, datetime

    from cli.adoption import Decision, HostJudge, keep_decision, read_decisions
    from pitr.errors import MalformedValue
    from pitr.layout import ArchiveId
    from pitr.wal.follow import ArchiveFork
    from pitr.wal.timeline import TimelineId

    site = make_site(init=False)
    archive = ArchiveId(7, 1)
    fork = ArchiveFork(TimelineId(1), LSN(100), TimelineId(1), LSN(200), TimelineId(2), LSN(100))
    decision = Decision(archive, fork, datetime.now(UTC))
    keep_decision(site.folder, decision)
    keep_decision(site.folder, decision)
    assert read_decisions(site.folder) == (decision,)
    judge = HostJudge(site.folder, archive, None, backups=list, say=print)
    assert judge.why_failover(fork) is not None
    for other in (
        ArchiveFork(TimelineId(1), LSN(100), TimelineId(1), LSN(201), TimelineId(2), LSN(100)),
        ArchiveFork(TimelineId(1), LSN(101), TimelineId(1), LSN(200), TimelineId(2), LSN(101)),
        ArchiveFork(TimelineId(1), LSN(100), TimelineId(1), LSN(200), TimelineId(3), LSN(100)),
    ):
        assert judge.why_failover(other) is None
    other_epoch = HostJudge(site.folder, ArchiveId(7, 2), None, backups=list, say=print)
    assert other_epoch.why_failover(fork) is None
    (site.folder / "adopted.json").write_text(content)
    with pytest.raises(MalformedValue, match="damaged"):
        read_decisions(site.folder)
    assert judge.why_failover(fork) is None


def test_the_lock_of_a_standby_cluster_does_not_prove_a_failover(make_site: MakeSite) -> None:
    from cli.adoption import HostJudge
    from pitr.layout import ArchiveId
    from pitr.postgres.leader import LeaderAddress
    from pitr.postgres.patroni import PatroniMembers
    from pitr.wal.follow import ArchiveFork
    from pitr.wal.timeline import TimelineId

    site = make_site(init=False)
    fork = ArchiveFork(TimelineId(1), LSN(100), TimelineId(1), LSN(200), TimelineId(2), LSN(100))
    with rest_member() as member:
        address = LeaderAddress("user=postgres", PatroniMembers([member.url]))
        judge = HostJudge(site.folder, ArchiveId(IDENTIFIER, 1), address, backups=list, say=print)
        member.lead("pg1", "10.0.0.1", 5432, timeline=2)
        address.find()
        assert judge.why_failover(fork) is not None
        member.lead("pg1", "10.0.0.1", 5432, timeline=2, is_standby=True)
        assert judge.why_failover(fork) is None


@pytest.mark.slow
def test_a_standby_that_follows_the_new_primary_can_be_adopted_too(
    make_site: MakeSite, postgres_factory: PostgresFactory
) -> None:
    site = make_site(settings=SETTINGS)
    others: list[RunningPostgres] = []

    def leave_another() -> None:
        others.append(make_standby(postgres_factory, site.server, SETTINGS))
        caught_up(site.server, others[0])
        others[0].stop()

    primary = lose_wal(site, postgres_factory, leave_another)
    assert site.daemon.stop() == 0
    (standby,) = others
    conninfo = f"host={primary.host} port={primary.port} user=postgres"
    standby.start({**SETTINGS, "primary_conninfo": conninfo})
    caught_up(primary, standby)
    site.set_option(f'dsn = "{primary.dsn}"', f'dsn = "{standby.dsn}"')
    decided = site("adopt", "--as", "failover", "--confirm", "--json").data
    assert decided["following"] == "00000002"
    site.daemon.start()
    primary.execute("INSERT INTO a VALUES ('4 after')")
    end = primary.value("SELECT pg_current_wal_flush_lsn()")
    sql = "SELECT flush_lsn >= %s::pg_lsn FROM pg_stat_replication WHERE application_name = 'pitr'"
    wait_until(lambda: (True,) in standby.execute(sql, end), f"{end} is durable\n{site.daemon.tail()}")
    assert site.daemon.stop() == 0
    done = site.restore("latest", site.folder / "new", "--start")
    assert rows(done.data["dsn"]) == ["1 before", "3 after", "4 after"]
