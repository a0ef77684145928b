"""``pitr patroni-replica`` and ``pitr patroni-bootstrap``: as Patroni calls them, and in a real Patroni."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from fix_cli import CHECKOUT, Done, MakeSite, Site, wait_until
from fix_patroni import MakePatroni, PatroniCluster, archived_cluster, wait_archived
from fix_ports import free_port
from fix_postgres import PostgresFactory, RunningPostgres, table_digests

from pitr.postgres.instance import Instance
from pitr.postgres.server_user import hand_over

SETTINGS = {"autovacuum": "off", "wal_keep_size": "1GB"}


def sources(site: Site) -> list[object]:
    words: list[object] = ["--identity", site.identity]
    for url in site.region_urls:
        words += ["--from", url]
    return words


def seed(site: Site, into: Path, leader: RunningPostgres, *more: object, exit_code: int = 0) -> Done:
    """Call the hook with the words that Patroni was seen to use."""
    return site.program(
        "patroni-replica",
        *sources(site),
        "--json",
        "--keep_data=True",
        "--no_leader=True",
        "--weight=3",
        "--scope=hospital",
        "--role=replica",
        f"--datadir={into}",
        f"--connstring={leader.dsn}",
        *more,
        exit_code=exit_code,
        timeout_s=180,
    )


def start_replica(site: Site, data_dir: Path, leader: RunningPostgres) -> RunningPostgres:
    """Start a seeded directory as Patroni does: with a connection to the leader, and no restore_command."""
    own = leader.instance
    instance = Instance(
        own.installation,
        data_dir,
        user=own.user,
        socket_dir=data_dir.parent / "rs",
        port=free_port(),
        log_path=data_dir.parent / "replica.log",
    )
    instance.start({"primary_conninfo": leader.dsn, "hot_standby": "on"}, timeout_s=90)
    return RunningPostgres(instance)


def check_follows(replica: RunningPostgres, leader: RunningPostgres) -> None:
    assert replica.value("SELECT pg_is_in_recovery()")
    leader.execute("INSERT INTO a VALUES ('to be streamed')")
    expected = table_digests(leader.dsn)
    wait_until(lambda: table_digests(replica.dsn) == expected, "the replica has what the leader has")
    assert replica.value("SELECT status FROM pg_stat_wal_receiver") == "streaming"


def test_a_replica_is_seeded_from_the_regions_and_streams_from_the_leader(make_site: MakeSite) -> None:
    site = make_site(settings=SETTINGS)
    leader = site.server
    leader.execute("CREATE TABLE a (v text)")
    leader.execute("INSERT INTO a SELECT repeat(md5(g::text), 40) FROM generate_series(1, 20000) g")
    site.start_daemon()
    for _ in range(3):
        leader.execute("INSERT INTO a SELECT repeat(md5(g::text), 40) FROM generate_series(1, 9000) g")
        leader.switch_wal()
    site.wait_durable()
    into = site.folder / "replica"
    done = seed(site, into, leader)
    assert "--weight=3" in done.stderr
    assert done.data["wal_segments"] >= 3
    assert (into / "standby.signal").exists()
    assert not (into / "recovery.signal").exists()
    assert "restore_command" not in (into / "postgresql.auto.conf").read_text()
    assert not into.with_name("replica.pitr").exists()
    replica = start_replica(site, into, leader)
    try:
        check_follows(replica, leader)
        # What is there is used: a stopped replica whose files have rotted is made right again.
        replica.stop()
        (into / "standby.signal").unlink()
        done = seed(site, into, leader)
        assert done.data["kept_bytes"] > done.data["fetched_bytes"]
        replica.instance.start({"primary_conninfo": leader.dsn, "hot_standby": "on"}, timeout_s=90)
        check_follows(replica, leader)
    finally:
        replica.kill()
    # Without keep_data a cluster that is there is never touched.
    refused = site.program(
        "patroni-replica", *sources(site), f"--datadir={into}", "--role=replica", exit_code=None
    )
    assert refused.exit_code not in (0, None)
    assert (into / "PG_VERSION").exists()


def test_what_could_not_follow_the_leader_is_not_made(
    make_site: MakeSite, postgres_factory: PostgresFactory
) -> None:
    site = make_site(settings=SETTINGS)
    site.server.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    site.wait_durable()
    other = postgres_factory(17, name="other")
    into = site.folder / "replica"
    assert "another cluster" in seed(site, into, other, exit_code=2).stdout
    assert not into.exists()
    missing = site.program("patroni-replica", f"--datadir={into}", "--role=replica", exit_code=2)
    assert "identity" in missing.stderr


def test_a_cluster_is_restored_to_a_target_and_is_left_shut_down_for_patroni(make_site: MakeSite) -> None:
    site = make_site(settings=SETTINGS)
    source = site.server
    source.execute("CREATE TABLE a (v text)")
    source.execute("INSERT INTO a SELECT repeat(md5(g::text), 40) FROM generate_series(1, 5000) g")
    site.start_daemon()
    source.execute("INSERT INTO a VALUES ('good')")
    good = table_digests(source.dsn)
    target = str(source.value("SELECT pg_current_wal_flush_lsn()"))
    source.execute("INSERT INTO a VALUES ('bad')")
    site.wait_durable()
    into = site.folder / "bootstrapped"
    done = site.program(
        "patroni-bootstrap",
        *sources(site),
        "--to",
        f"lsn:{target}",
        "--json",
        "--scope=hospital",
        f"--datadir={into}",
        "--weight=3",
        timeout_s=180,
    )
    assert "--weight=3" in done.stderr
    assert not (into / "postmaster.pid").exists()
    assert not (into / "recovery.signal").exists()
    certificate = json.loads(into.with_name(f"{into.name}.recovery-certificate.json").read_text())
    assert certificate["holes"] == "none"
    assert certificate["promoted"]["timeline"] == "00000002"
    own = source.instance
    instance = Instance(
        own.installation,
        into,
        user=own.user,
        socket_dir=site.folder / "bs",
        port=free_port(),
        log_path=site.folder / "bootstrapped.log",
    )
    # As Patroni starts what its method has made: nothing is to be recovered any more.
    instance.start({}, timeout_s=90)
    restored = RunningPostgres(instance)
    try:
        assert not restored.value("SELECT pg_is_in_recovery()")
        assert table_digests(restored.dsn) == good
        assert "database system was shut down" in instance.log_path.read_text()
    finally:
        restored.kill()
    # A cluster that is there is never touched.
    again = site.program(
        "patroni-bootstrap", *sources(site), "--scope=hospital", f"--datadir={into}", exit_code=None
    )
    assert again.exit_code not in (0, None)
    assert (into / "PG_VERSION").exists()


def hook(site: Site, cluster: PatroniCluster, name: str, *more: str) -> str:
    """Write a script that runs a hook, and that the servers' user may run; return its path."""
    vault = cluster.folder / "vault"
    vault.mkdir(exist_ok=True)
    identity = vault / "identity.toml"
    if not identity.exists():
        shutil.copyfile(site.identity, identity)
        identity.chmod(0o600)
    script = cluster.folder / f"{name}.sh"
    words = [sys.executable, "-P", "-m", "cli.main", name, "--identity", str(identity), *more]
    for url in site.region_urls:
        words += ["--from", url]
    quoted = " ".join(f"'{word}'" for word in words)
    script.write_text(f'#!/bin/sh\nexport PYTHONPATH="{CHECKOUT}" HOME="{vault}"\nexec {quoted} "$@"\n')
    script.chmod(0o755)
    hand_over(vault, cluster.house.user)
    return str(script)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_patroni_restores_a_cluster_and_seeds_its_replica_from_the_regions(
    make_patroni: MakePatroni, server_tmp_path: Path
) -> None:
    first = make_patroni()
    first.start(1)
    with archived_cluster(first, server_tmp_path) as site:
        leader = first.wait_leader()
        leader.server.execute("CREATE TABLE a (v text)")
        leader.server.execute("INSERT INTO a SELECT repeat(md5(g::text), 40) FROM generate_series(1, 9000) g")
        site.daemon.start()
        wait_archived(site, leader)
        site("backup", "--type", "full", "--json")
        leader.server.execute("INSERT INTO a VALUES ('good')")
        wait_archived(site, leader)
        good = table_digests(leader.server.dsn)
        target = str(leader.server.value("SELECT pg_current_wal_flush_lsn()"))
        leader.server.execute("INSERT INTO a VALUES ('bad')")
        wait_archived(site, leader)
        assert site.daemon.stop() == 0
        first.stop()

        second = make_patroni(scope="hospital-r1")
        second.bootstrap = {
            "method": "pitr",
            "pitr": {
                "command": hook(site, second, "patroni-bootstrap", "--to", f"lsn:{target}"),
                "keep_existing_recovery_conf": False,
            },
        }
        second.postgresql = {
            "create_replica_methods": ["pitr"],
            "pitr": {
                "command": hook(site, second, "patroni-replica"),
                "keep_data": True,
                "no_leader": True,
            },
        }
        second.start(1)
        restored = second.wait_leader()
        assert table_digests(restored.server.dsn) == good
        assert restored.server.value("SELECT timeline_id FROM pg_control_checkpoint()") == 2

        # The archive's own timeline 1 goes on after the fork: a replica made of it could not follow.
        line = f'patroni = ["{leader.url}"]'
        site.set_option(line, f'patroni = ["{restored.url}"]')
        done = site("adopt", "--as", "restore", "--identity", site.identity, "--confirm", "--json")
        assert done.data["is_new_epoch"] is True
        site.daemon.start()
        wait_archived(site, restored)
        site("backup", "--type", "full", "--json")
        restored.server.execute("INSERT INTO a VALUES ('after the restore')")
        wait_archived(site, restored)
        second.add_node("pg2")
        second.wait_streaming("pg2")
        log = second.nodes["pg2"].log.read_text()
        assert "replica has been created using pitr" in log
        assert "basebackup" not in log
        replica = second.nodes["pg2"].server
        expected = table_digests(restored.server.dsn)
        wait_until(lambda: table_digests(replica.dsn) == expected, "the replica has all")
        assert site.daemon.stop() == 0
