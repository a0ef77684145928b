"""Who leads: asked of Patroni's members over HTTP, and of the hosts of one DSN by libpq."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_patroni_rest import IDENTIFIER, Member, rest_member
from fix_postgres import PostgresFactory, RunningPostgres, majors
from fix_standby import make_standby
from fix_wal_archive import RunningArchiver as Running
from fix_wal_archive import Told, WalHouse, flush_lsn, now, quick_settings, system_identifier, wait_until

from pitr.archive import WalArchiver
from pitr.archive_values import ArchiveEventKind
from pitr.datakeys import HostKeys
from pitr.errors import MalformedValue, ServerUnavailable
from pitr.postgres.address import ConfiguredAddress, Endpoint, at_endpoint
from pitr.postgres.leader import LeaderAddress
from pitr.postgres.patroni import ANSWER_BYTES_MAX, Leader, PatroniMembers, PatroniTls, parse_url
from pitr.postgres.replication import ReplicationConnection
from pitr.spool import DirectorySpool
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore

KEEP_WAL = {"wal_keep_size": "1GB"}
EACH_MAJOR = pytest.mark.parametrize("major", majors(slow=[18]), ids=lambda major: f"pg{major}")


@pytest.fixture
def members() -> Iterator[list[Member]]:
    with rest_member() as one, rest_member() as two, rest_member() as three:
        yield [one, two, three]


def ask(members: list[Member], deadline_s: float = 3.0) -> Leader:
    return PatroniMembers([one.url for one in members], deadline_s=deadline_s).find_leader()


def test_the_member_that_holds_the_lock_is_found_among_all(members: list[Member]) -> None:
    members[1].lead("pg2", "10.0.0.2", 5432, timeline=3)
    assert ask(members) == Leader("pg2", Endpoint("10.0.0.2", "5432"), TimelineId(3), IDENTIFIER)


def test_the_member_that_leads_need_not_be_the_one_that_is_first_in_the_cluster(
    members: list[Member],
) -> None:
    listed = [{"name": "pg1", "host": "10.0.0.1", "port": 1}, {"name": "pg2", "host": "10.0.0.2", "port": 2}]
    members[0].lead("pg2", "", 0, members=listed)
    assert ask(members).endpoint == Endpoint("10.0.0.2", "2")


def test_the_leader_of_a_standby_cluster_is_found_and_is_known_as_one(members: list[Member]) -> None:
    members[1].lead("pg2", "10.0.0.2", 5432, timeline=3, is_standby=True)
    found = ask(members)
    assert found == Leader("pg2", Endpoint("10.0.0.2", "5432"), TimelineId(3), IDENTIFIER, is_standby=True)
    # Promoted: the same member, and no standby any more.
    members[1].lead("pg2", "10.0.0.2", 5432, timeline=4)
    assert not ask(members).is_standby
    members[0].lead("pg1", "10.0.0.1", 5432, timeline=4, is_standby=True)
    with pytest.raises(ServerUnavailable, match="pg1 and pg2 both say"):
        ask(members)


def test_without_a_leader_each_answer_is_told(members: list[Member]) -> None:
    urls = [*(one.url for one in members), "http://127.0.0.1:1"]
    with pytest.raises(ServerUnavailable, match="no member") as told:
        PatroniMembers(urls).find_leader()
    assert str(told.value.detail).count("not the primary (503)") == 3
    assert "refused" in str(told.value.detail)


def test_of_two_that_claim_the_lock_the_later_timeline_is_right_and_equal_ones_are_not_guessed(
    members: list[Member],
) -> None:
    members[0].lead("pg1", "10.0.0.1", 5432, timeline=3)
    members[1].lead("pg2", "10.0.0.2", 5432, timeline=4)
    assert ask(members).name == "pg2"
    members[1].lead("pg2", "10.0.0.2", 5432, timeline=3)
    with pytest.raises(ServerUnavailable, match="pg1 and pg2 both say"):
        ask(members)


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {},
        "x",
        [{"name": "pg1", "host": "a,b", "port": 5432}],
        [{"name": "pg1", "host": "/tmp", "port": 5432}],
        [{"name": "pg1", "host": "", "port": 5432}],
        [{"name": "pg1", "host": "a", "port": 0}],
        [{"name": "pg1", "host": "a", "port": "5432"}],
        [{"name": "pg1", "host": "a" * 300, "port": 5432}],
        [{"name": "other", "host": "a", "port": 5432}, 7],
    ],
)
def test_what_is_no_place_of_a_server_is_not_connected_to(members: list[Member], listed: object) -> None:
    members[0].lead("pg1", "", 0, members=listed)
    with pytest.raises(ServerUnavailable, match="no member"):
        ask(members)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b'{"patroni": 1}', b"\xff"])
def test_what_is_no_answer_of_patroni_is_none(members: list[Member], body: bytes) -> None:
    members[0].answers["/primary"] = (200, body)
    members[1].lead("pg2", "10.0.0.2", 5432)
    assert ask(members).name == "pg2"


def test_an_endless_answer_is_cut_and_a_redirection_is_not_followed(members: list[Member]) -> None:
    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 65_536)

    members[0].write = endless
    with pytest.raises(ServerUnavailable) as told:
        ask(members[:1])
    assert f"more than {ANSWER_BYTES_MAX} bytes" in str(told.value.detail)

    def elsewhere(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{members[1].url}/primary")
        handler.end_headers()

    members[0].write = elsewhere
    members[1].lead("pg2", "10.0.0.2", 5432)
    with pytest.raises(ServerUnavailable, match="no member"):
        ask(members[:1])
    assert not members[1].asked


@pytest.mark.parametrize("part", ["headers", "body"])
def test_an_answer_that_drips_ends_with_the_deadline(members: list[Member], part: str) -> None:
    ending = threading.Event()

    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if part == "body":
            handler.wfile.write(b"Content-Length: 100000\r\n\r\n")
        while not ending.wait(0.02):
            handler.wfile.write(b"a")

    members[0].write = drip
    members[1].lead("pg2", "10.0.0.2", 5432)
    begun = time.monotonic()
    try:
        assert ask(members, deadline_s=0.5).name == "pg2"
    finally:
        ending.set()
    assert time.monotonic() - begun < 5.0


def test_the_slots_of_every_member_are_read_from_whoever_answers(members: list[Member]) -> None:
    asked = PatroniMembers([one.url for one in members])
    assert asked.permanent_slots() is None
    members[2].answers["/config"] = (
        200,
        b'{"ttl": 20, "slots": {"pitr": {"type": "physical"}, "x": {"type": "logical"}, "y": 1}}',
    )
    assert asked.permanent_slots() == {"pitr": "physical", "x": "logical"}
    members[2].answers["/config"] = (200, b'{"slots": []}')
    assert asked.permanent_slots() == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pg1:8008",
        "ftp://pg1",
        "http://",
        "http://u:p@pg1",
        "http://pg1:x",
        "http://pg1/?a=1",
        "http://[1",
    ],
)
def test_what_is_no_rest_address_is_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        parse_url(text)


def test_a_certificate_that_nobody_vouches_for_is_not_believed(members: list[Member], tmp_path: Path) -> None:
    # Plain HTTP where TLS is due: the handshake fails, and nothing is asked.
    members[0].lead("pg1", "10.0.0.1", 5432)
    with pytest.raises(ServerUnavailable):
        PatroniMembers([members[0].url.replace("http:", "https:")]).find_leader()
    assert not members[0].asked
    with pytest.raises(OSError):
        PatroniMembers(["https://pg1"], PatroniTls(ca_file=tmp_path / "none"))


def archiver(house: WalHouse, address: object, spool_dir: Path, told: Told) -> Running:
    made = WalArchiver(
        address=address,  # type: ignore[arg-type]
        archive=house.archive,
        repository=house.repository,
        signer=house.signer,
        keys=HostKeys(house.repository, house.archive, house.signer, [house.recipient], random=os.urandom),
        spool=DirectorySpool(spool_dir, bytes_max=1 << 30),
        events=told,
        settings=quick_settings(),
        clock=now,
        random=os.urandom,
    )
    return Running(made, told)


def commit(server: RunningPostgres) -> None:
    server.execute("SELECT pg_logical_emit_message(true, 'x', repeat('a', 300000))")


@EACH_MAJOR
def test_the_stream_follows_the_lock_and_never_asks_a_standby(
    postgres_factory: PostgresFactory, tmp_path: Path, members: list[Member], major: int
) -> None:
    server = postgres_factory(major, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    members[0].lead("pg1", server.host, server.port)
    urls = [one.url for one in members]
    address = LeaderAddress(server.dsn, PatroniMembers(urls), poll_every_s=0.1)
    told = Told()
    running = archiver(house, address, tmp_path / "spool", told)
    address.start(running.archiver.look_at_server)
    try:
        running.start().wait_streaming()
        commit(server)
        running.wait_durable(flush_lsn(server))
        assert not standby.execute("SELECT 1 FROM pg_stat_replication")
        # A member that says too early that it leads is still a standby: nothing is streamed from it.
        members[0].follow()
        members[1].lead("pg2", standby.host, standby.port)
        wait_until(lambda: "not been promoted" in str(running.archiver.status().last_error), "the refusal")
        assert not running.archiver.status().is_streaming
        assert not standby.execute("SELECT 1 FROM pg_stat_replication")
        server.stop()
        standby.instance.promote()
        wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
        members[1].lead("pg2", standby.host, standby.port, timeline=2)
        running.wait_streaming()
        commit(standby)
        running.wait_durable(flush_lsn(standby))
        with psycopg.connect(address.session()) as connection:
            assert connection.info.port == standby.port
        running.stop()
    finally:
        address.stop()
        running.archiver.stop(0.0)
    assert house.wal(2).assert_equals_server(standby.data_dir) > 0
    assert not told.has(ArchiveEventKind.WAL_LOST)


def test_the_leader_of_a_standby_cluster_is_streamed_from_also_through_its_promotion(
    postgres_factory: PostgresFactory, tmp_path: Path, members: list[Member]
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    members[0].lead("pg2", standby.host, standby.port, is_standby=True)
    address = LeaderAddress(server.dsn, PatroniMembers([one.url for one in members]), poll_every_s=0.1)
    told = Told()
    running = archiver(house, address, tmp_path / "spool", told)
    address.start(running.archiver.look_at_server)
    try:
        running.start().wait_streaming()
        commit(server)
        running.wait_durable(flush_lsn(server))
        assert standby.execute("SELECT 1 FROM pg_stat_replication")
        assert not address.leads_only
        server.stop()
        standby.instance.promote()
        members[0].lead("pg2", standby.host, standby.port, timeline=2)
        wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
        commit(standby)
        running.wait_durable(flush_lsn(standby))
        running.stop()
    finally:
        address.stop()
        running.archiver.stop(0.0)
    assert house.wal(1).assert_equals_server(standby.data_dir) > 0
    assert house.wal(2).assert_equals_server(standby.data_dir) > 0
    assert not told.has(ArchiveEventKind.WAL_LOST)


@EACH_MAJOR
def test_of_several_hosts_the_primary_is_streamed_from_and_sessions_go_there_too(
    postgres_factory: PostgresFactory, major: int
) -> None:
    server = postgres_factory(major, KEEP_WAL)
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    hosts = (
        f"host={standby.host},{server.host} port={standby.port},{server.port} user=postgres dbname=postgres"
    )
    address = ConfiguredAddress(f"{hosts} target_session_attrs=read-write")
    with closing(ReplicationConnection.connect(address.find())) as connection:
        address.note_connected(connection.endpoint)
        assert connection.endpoint == Endpoint(server.host, str(server.port))
        assert not connection.is_standby()
    with psycopg.connect(address.session()) as session:
        assert session.info.port == server.port
    other = ConfiguredAddress(f"{hosts} target_session_attrs=standby")
    with closing(ReplicationConnection.connect(other.find())) as connection:
        other.note_connected(connection.endpoint)
        assert connection.is_standby()
    with psycopg.connect(other.session()) as session:
        assert session.info.port == standby.port
    server.stop()
    standby.instance.promote()
    wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
    with closing(ReplicationConnection.connect(address.find())) as connection:
        assert connection.endpoint.port == str(standby.port)


def test_an_endpoint_takes_the_place_of_what_would_choose_another() -> None:
    dsn = "host=a,b hostaddr=10.0.0.1,10.0.0.2 port=1,2 user=u target_session_attrs=read-write"
    named = at_endpoint(dsn, Endpoint("b", "2"))
    assert "hostaddr" not in named
    assert "host=b" in named
    assert "port=2" in named
    assert "target_session_attrs=read-write" in named
    assert ConfiguredAddress("host=a user=u").session() == "host=a user=u"
