"""A real Patroni cluster is followed: switchovers, crashes, and a leader that lost what the archive has."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fix_cli import Site, wait_until
from fix_patroni import MakePatroni, Node, PatroniCluster, archived_cluster, wait_archived
from fix_postgres import majors, table_digests

FULL = ["backup", "--type", "full", "--json"]


class Clerk:
    """Commits to whoever leads, and writes down what was acknowledged."""

    def __init__(self, cluster: PatroniCluster) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self.acknowledged: list[int] = []

    @contextmanager
    def at_work(self) -> Iterator[Clerk]:
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            thread.join(60)

    def wait_more(self, count: int) -> None:
        target = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= target, f"{count} commits", timeout_s=120)

    def _work(self) -> None:
        number = 0
        while not self._stopping.is_set():
            node = self._cluster.leader()
            if node is None:
                self._stopping.wait(0.2)
                continue
            try:
                with psycopg.connect(node.server.tcp_dsn, autocommit=True, connect_timeout=5) as connection:
                    while not self._stopping.is_set():
                        number += 1
                        connection.execute(
                            "INSERT INTO ledger VALUES (%s, repeat(md5(random()::text), 20))", [number]
                        )
                        self.acknowledged.append(number)
            except psycopg.Error:
                self._stopping.wait(0.2)


def begin(cluster: PatroniCluster, site: Site) -> Node:
    """Make the ledger, start the daemon, and take a base backup."""
    leader = cluster.wait_leader()
    leader.server.execute("CREATE TABLE ledger (id bigint, text text)")
    site.daemon.start()
    wait_archived(site, leader)
    site(*FULL)
    return leader


def check_restored(site: Site, leader: Node, name: str, *more: object) -> dict[str, str]:
    """Restore the end of the archive: it must hold exactly what the surviving leader has."""
    wait_archived(site, leader)
    expected = table_digests(leader.server.dsn)
    into = site.folder / name
    done = site.restore("latest", into, "--start", *more)
    assert table_digests(done.data["dsn"]) == expected
    site.examine(into)
    return expected


def no_gap(site: Site) -> None:
    found = site("wal", "list", "--gaps-only", "--json").data["stretches"]
    assert not [one for one in found if one["kind"] == "gap"]
    checked = site("catalogue", "check", "--json").data
    assert checked is not None


@pytest.mark.parametrize("major", majors(slow=[18]), ids=lambda major: f"pg{major}")
def test_a_switchover_leaves_no_gap(make_patroni: MakePatroni, server_tmp_path: Path, major: int) -> None:
    cluster = make_patroni(major=major)
    cluster.start(2)
    with archived_cluster(cluster, server_tmp_path) as site:
        begin(cluster, site)
        assert "Patroni keeps it on every member" in site("doctor", exit_code=None).stdout
        clerk = Clerk(cluster)
        with clerk.at_work():
            clerk.wait_more(50)
            leader = cluster.switch_over()
            clerk.wait_more(50)
        check_restored(site, leader, "restored")
        no_gap(site)
        assert "orphaned" not in site("wal", "list").stdout
        assert site.daemon.stop() == 0, site.daemon.tail()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("major", [17, 18], ids=lambda major: f"pg{major}")
def test_five_failovers_in_a_row_under_load_leave_no_gap(
    make_patroni: MakePatroni, server_tmp_path: Path, major: int
) -> None:
    cluster = make_patroni(major=major)
    cluster.start(3)
    with archived_cluster(cluster, server_tmp_path) as site:
        begin(cluster, site)
        clerk = Clerk(cluster)
        with clerk.at_work():
            for number in range(5):
                clerk.wait_more(100)
                leader = cluster.wait_leader()
                if number % 2:
                    new = cluster.switch_over()
                else:
                    cluster.crash(leader.name)
                    new = cluster.wait_leader(other_than=leader.name)
                    cluster.start_node(leader.name)
                clerk.wait_more(100)
                wait_archived(site, new, 120)
                cluster.wait_streaming()
        leader = cluster.wait_leader()
        wait_archived(site, leader, 120)
        held = {int(str(row[0])) for row in leader.server.execute("SELECT id FROM ledger")}
        # Asynchronous replicas may lose the last moment of a leader that crashed, and no more.
        assert len(set(clerk.acknowledged) - held) < len(clerk.acknowledged) / 10
        check_restored(site, leader, "restored")
        no_gap(site)
        assert site.daemon.stop() == 0, site.daemon.tail()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_archive_ahead_of_the_new_leader_follows_it_and_keeps_its_end(
    make_patroni: MakePatroni, server_tmp_path: Path
) -> None:
    cluster = make_patroni()
    cluster.start(2)
    with archived_cluster(cluster, server_tmp_path) as site:
        leader = begin(cluster, site)
        leader.server.execute("INSERT INTO ledger VALUES (1, 'both have it')")
        replica = next(node for node in cluster.nodes.values() if node is not leader)
        wait_until(lambda: replica.server.value("SELECT count(*) FROM ledger") == 1, "the replica has it")
        receiver = int(str(replica.server.value("SELECT pid FROM pg_stat_wal_receiver")))
        os.kill(receiver, signal.SIGSTOP)
        leader.server.execute(
            "INSERT INTO ledger SELECT 2, repeat(md5(g::text), 100) FROM generate_series(1, 9000) g"
        )
        wait_archived(site, leader)
        old = table_digests(leader.server.dsn)
        cluster.crash(leader.name)
        # What its socket held is gone with it, so that the replica surely lacks WAL.
        os.kill(receiver, signal.SIGKILL)
        new = cluster.wait_leader(other_than=leader.name)
        assert new.server.value("SELECT count(*) FROM ledger") == 1
        new.server.execute("INSERT INTO ledger VALUES (3, 'after the failover')")
        wait_archived(site, new, 120)
        told = site.daemon.tail()
        assert "orphaned" in told
        assert "holds Patroni's lock, so this was a failover" in told
        orphans = [
            one for one in site("wal", "list", "--json").data["stretches"] if one["kind"] == "orphaned"
        ]
        assert [one["timeline"] for one in orphans] == ["00000001"]
        check_restored(site, new, "restored")
        no_gap(site)
        into = site.folder / "orphaned"
        done = site.restore("latest", into, "--start", "--timeline", "1")
        assert table_digests(done.data["dsn"]) == old
        assert site.daemon.stop() == 0, site.daemon.tail()
