"""``pitr fingerprint`` on a real standby, and the verifications that go on to it and compare."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_cli import MakeSite, Site
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby
from fix_verify_site import check_of, results, verified_site, verify

from pitr.wal.lsn import LSN
from storage.local import DirectoryStore
from verifiers.fingerprint import Fingerprint, get_fingerprint
from verifiers.public_key import from_pem

RIGHT, WRONG = b"a-row-as-it-was-committed", b"a-row-as-it-was-NEVER-put"
# What reads the broken page must come to its end, as it would without page checksums.
BROKEN_ALLOWED = {"ignore_checksum_failure": "on"}


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return verified_site(make_site(17), 'every = "never"\n')


@contextmanager
def written_to(server: RunningPostgres) -> Iterator[None]:
    """Let somebody insert rows all the while."""
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.01):
            server.execute("INSERT INTO busy DEFAULT VALUES")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def signed(site: Site, lsn: str) -> Fingerprint:
    """Return a fingerprint as each region has it, opened with the verifier's public key alone."""
    verifier = from_pem((site.config.parent / "verifier.pub.pem").read_text())
    repository = tomllib.loads(site.config.read_text())["repository"]["id"]
    system = int(str(site.server.value("SELECT system_identifier FROM pg_control_system()"))) % (1 << 64)
    found = [
        get_fingerprint(DirectoryStore(region.path), verifier, repository, system, LSN.parse(lsn))
        for region in site.regions
    ]
    assert found[0] == found[1] == found[2]
    return found[0]


def flip_row(file: Path) -> None:
    content = file.read_bytes()
    assert content.count(RIGHT) == 1
    file.write_bytes(content.replace(RIGHT, WRONG))


@pytest.mark.slow
def test_a_random_run_goes_on_to_the_fingerprint_of_a_standby_and_finds_a_row_that_differs(
    site: Site, postgres_factory: PostgresFactory
) -> None:
    primary = site.server
    alone = check_of(verify(site, "--latest"), "C11")
    assert (alone["result"], alone["required"]) == ("SKIPPED", False)
    assert "no fingerprint of the source was taken after the target" in alone["reason"]

    primary.execute("CREATE TABLE busy (n bigserial, at timestamptz DEFAULT clock_timestamp())")
    primary.execute("CREATE TABLE judged (t text)")
    primary.execute(f"INSERT INTO judged VALUES ('{RIGHT.decode()}')")
    standby = make_standby(postgres_factory, primary, site.settings)
    caught_up(primary, standby)
    with written_to(primary):
        before = datetime.now(UTC)
        busy = site("fingerprint", "--standby", standby.dsn, "--json").data
        assert standby.value("SELECT pg_is_wal_replay_paused()") is False
        caught_up(primary, standby)
    caught_up(primary, standby)
    assert standby.value("SELECT count(*) FROM busy") == primary.value("SELECT count(*) FROM busy")
    last = site("fingerprint", "--standby", standby.dsn, "--json").data
    assert LSN.parse(last["lsn"]) == LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()")))
    assert LSN.parse(busy["lsn"]) < LSN.parse(last["lsn"])
    taken = signed(site, busy["lsn"])
    assert (len(taken.digests.tables), busy["rows"]) == (
        busy["tables"],
        sum(t.rows for t in taken.digests.tables),
    )
    rows = {one.table: one.rows for one in signed(site, last["lsn"]).digests.tables}
    assert rows["postgres.public.busy"] == primary.value("SELECT count(*) FROM busy")
    site.wait_durable()

    random = verify(site, "--random")
    assert results(random)["C11"] == "PASSED", check_of(random, "C11")
    # While somebody wrote: it stood at exactly this LSN, or the restored rows would be more or fewer.
    exact = verify(site, "--at", before.isoformat())
    assert f"at {busy['lsn']}" in check_of(exact, "C11")["expected"]
    assert check_of(exact, "C11")["result"] == "PASSED", check_of(exact, "C11")
    assert (exact.data["verdict"], check_of(exact, "C11")["required"]) == ("PASSED", True)

    file = standby.data_dir / str(primary.value("SELECT pg_relation_filepath('judged')"))
    standby.stop()
    flip_row(file)
    standby.start({**site.settings, **BROKEN_ALLOWED})
    before = datetime.now(UTC)
    primary.execute("INSERT INTO busy DEFAULT VALUES")
    caught_up(primary, standby)
    wrong = site("fingerprint", "--standby", standby.dsn, "--json").data
    site.wait_durable()
    assert LSN.parse(wrong["lsn"]) > LSN.parse(last["lsn"])
    failed = verify(site, "--at", before.isoformat(), exit_code=7)
    compared = check_of(failed, "C11")
    assert (compared["result"], failed.data["verdict"]) == ("FAILED", "FAILED")
    assert compared["reason"] == "table postgres.public.judged has other rows than the source"
    assert [check for check, result in results(failed).items() if result == "FAILED"] == ["C11"]


def test_a_fingerprint_is_refused_without_a_standby_and_before_it_is_held_up(site: Site) -> None:
    refused = site("fingerprint", "--standby", site.server.dsn, "--json", exit_code=None)
    assert refused.exit_code != 0
    assert refused.error["message"] == "a fingerprint is taken on a standby"
    no_key = site("fingerprint", "--standby", "host=192.0.2.1", "--key", "nosuch", "--json", exit_code=8)
    assert no_key.error["next"] == "pitr verifier init"
    assert json.dumps(no_key.object).count("192.0.2.1") == 0
