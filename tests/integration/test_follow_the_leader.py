"""Watchdog, disk watch and doctor of a Patroni cluster: they look at whoever leads, at no other server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fix_patroni_rest import Member, rest_member
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import make_standby
from fix_sync import commit_that_waits, guard_dsn, set_names, sync_names, until
from fix_watchdog import watching

from cli.config import load_settings
from cli.config_template import NewConfig, NewRegion, render_config
from cli.disk_watch import DiskWatch
from cli.doctor import examine
from pitr.backup_checks import runs_here
from pitr.disk_forecast import DropPolicy
from pitr.pipeline.keys import Identity
from pitr.postgres.leader import LeaderAddress
from pitr.postgres.patroni import PatroniMembers
from pitr.postgres.server import Server
from pitr.release_journal import ReleaseStep
from verifiers.base import Severity

SLOT = "pitr"
MIB = 1 << 20
# As docs/failover.md has it: neither a host nor a port, which are the leader's.
DSN = "user=postgres dbname=postgres"


@pytest.fixture
def member() -> Iterator[Member]:
    with rest_member() as member:
        yield member


def test_the_watchdog_goes_where_the_lead_goes(
    postgres_factory: PostgresFactory, member: Member, tmp_path: Path
) -> None:
    first, second = postgres_factory(name="first"), postgres_factory(name="second")
    for server in (first, second):
        guard_dsn(server)
        set_names(server, "pitr")
    member.lead("pg1", first.host, first.port)
    address = LeaderAddress("user=guard dbname=postgres", PatroniMembers([member.url]), poll_every_s=0.1)
    address.start(lambda: None)
    try:
        with watching(address, tmp_path) as watched:
            with commit_that_waits(first) as client:
                client.join(20)
                assert not client.is_alive()
            until(lambda: watched.steps() == [ReleaseStep.RELEASING, ReleaseStep.RELEASED])
            assert sync_names(second) == "pitr"
            # The old one runs on, as one does that is cut off from the others.
            member.lead("pg2", second.host, second.port, timeline=2)
            with commit_that_waits(second) as client:
                client.join(20)
                assert not client.is_alive()
            assert watched.said("pg2 leads now") == 1
            until(
                lambda: watched.steps()[2:] == [ReleaseStep.LEFT, ReleaseStep.RELEASING, ReleaseStep.RELEASED]
            )
            assert sync_names(second) == ""
    finally:
        address.stop()


def test_a_watchdog_that_finds_a_standby_asks_again_who_leads(
    postgres_factory: PostgresFactory, member: Member, tmp_path: Path
) -> None:
    server = postgres_factory()
    guard_dsn(server)
    standby = make_standby(postgres_factory, server, {})
    # Before the members agree the lock may name a server that is no primary yet.
    member.lead("pg2", standby.host, standby.port)
    address = LeaderAddress("user=guard dbname=postgres", PatroniMembers([member.url]))
    with watching(address, tmp_path) as watched:
        until(lambda: watched.said("is a standby") == 1)
        set_names(server, "pitr")
        member.lead("pg1", server.host, server.port)
        with commit_that_waits(server) as client:
            client.join(20)
            assert not client.is_alive()


def kept(server: RunningPostgres) -> None:
    """Let the slot keep more WAL than any slot does, none of which a crash would need."""
    server.execute("SELECT pg_create_physical_replication_slot(%s, true)", SLOT)
    for _ in range(6):
        server.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 16000000))")
    server.checkpoint()


def disk_watch(address: LeaderAddress, given_up: list[str]) -> DiskWatch:
    # However much is free, it is too little.
    policy = DropPolicy(drops=True, below_bytes=1 << 60)
    return DiskWatch(
        address.session,
        SLOT,
        policy,
        sees_disk=True,
        give_up=given_up.append,
        log=structlog.get_logger(),
        monotonic=time.monotonic,
    )


def test_the_leaders_slot_is_given_up_for_its_disk_once(
    postgres_factory: PostgresFactory, member: Member
) -> None:
    idle, server = postgres_factory(name="idle"), postgres_factory(name="first")
    given_up: list[str] = []
    address = LeaderAddress(DSN, PatroniMembers([member.url]))
    watch = disk_watch(address, given_up)
    # Nobody leads yet.
    assert watch.look() is None
    kept(server)
    member.lead("pg1", idle.host, idle.port)
    seen = watch.look()
    assert seen is not None
    assert (seen.slot_status, given_up) == (None, [])
    member.lead("pg2", server.host, server.port)
    seen = watch.look()
    assert seen is not None
    assert seen.slot_status == "extended" or seen.slot_status == "reserved"
    assert seen.free_bytes is not None
    assert len(given_up) == 1
    assert "kept by the slot" in given_up[0]
    # The server needs its time to make room: two minutes.
    assert watch.look() is not None
    assert len(given_up) == 1


def test_another_hosts_disk_is_not_taken_for_the_servers(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    standby = make_standby(postgres_factory, server, {})
    with Server.connect(server.dsn) as session:
        assert runs_here(session, server.data_dir)
        # What a member's host has under the leader's path.
        assert not runs_here(session, standby.data_dir)
        assert not runs_here(session, server.data_dir / "none")
    with Server.connect(standby.dsn) as session:
        assert runs_here(session, standby.data_dir)
        assert not runs_here(session, server.data_dir)


def test_the_doctor_judges_what_commits_wait_for_at_the_leader(
    postgres_factory: PostgresFactory, member: Member, tmp_path: Path
) -> None:
    server = postgres_factory()
    server.execute("SELECT pg_create_physical_replication_slot(%s, true)", SLOT)
    # Not in the doctor's own sessions: in those of the application.
    server.execute("CREATE ROLE app")
    server.execute("ALTER ROLE app SET synchronous_commit = 'remote_apply'")
    set_names(server, "pitr")
    member.lead("pg1", server.host, server.port)
    identity = Identity(bytes(range(32)))
    config = NewConfig(
        cluster="main",
        dsn=DSN,
        slot=SLOT,
        repository="0" * 32,
        root=str(identity.root_signer().public),
        recipients=(str(identity.recipient()),),
        quorum=1,
        regions=(NewRegion("eu", "file:///nowhere"),),
        signing_key_file=tmp_path / "signing.key",
        state_dir=tmp_path / "state",
    )
    text = render_config(config).replace(f'dsn = "{DSN}"', f'dsn = "{DSN}"\npatroni = ["{member.url}"]', 1)
    path = tmp_path / "pitr.toml"
    path.write_text(text)
    found = {one.id: one for one in examine(load_settings(path), None)}
    assert found["server.synchronous_commit"].subject == 'role "app"'
    assert found["server.synchronous_commit"].severity is Severity.FAIL
    assert "wait for ever" in found["server.synchronous_commit"].message
    assert "free where pg_wal is" in found["server.wal_disk"].message
