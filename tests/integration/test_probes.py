"""The doctor's probes against real servers, stores and files."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fix_ports import free_port
from fix_postgres import PostgresFactory, RunningPostgres
from fix_s3 import S3Server
from fix_s3_script import Answer, ScriptedS3, error

from cli.doctor_clock import probe_clock
from pitr.catalogue.records import EpochRecord, RepositoryRecord
from pitr.layout import ArchiveId
from pitr.pipeline.keys import Identity, best_suite
from pitr.pipeline.sign import Signer
from pitr.repository import Repository
from storage.local import DirectoryStore
from storage.memory import MemoryStore
from storage.regions import Region
from storage.s3 import S3Credentials, S3Store
from storage.s3_dialects import PROFILES
from verifiers.base import Finding, Severity, worst
from verifiers.host_probes import (
    probe_identity_absent,
    probe_installation,
    probe_signing_key,
    probe_state_directory,
)
from verifiers.probes import judge_data_directory, probe_server
from verifiers.store_probes import probe_envelope, probe_key, probe_places, probe_region, probe_repository

REPOSITORY = "0123456789abcdef0123456789abcdef"
ARCHIVE = ArchiveId(7_300_000_000_000_000_001, 1)


def _now() -> datetime:
    return datetime.now(UTC)


def _by_id(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    return module_postgres_factory()


def test_a_good_server_has_no_failure(server: RunningPostgres) -> None:
    server.execute("SELECT pg_create_physical_replication_slot('pitr', true)")
    try:
        probe, findings = probe_server(server.dsn, "pitr", now=_now)
    finally:
        server.execute("SELECT pg_drop_replication_slot('pitr')")
    assert probe is not None
    assert probe.major == 17
    assert worst(findings) is not Severity.FAIL, [one for one in findings if one.severity is Severity.FAIL]
    assert _by_id(findings)["server.slot"].severity is Severity.WARN
    assert "not active" in _by_id(findings)["server.slot"].message


def test_a_server_that_is_not_there_is_one_finding() -> None:
    probe, findings = probe_server("host=/nonexistent port=1 dbname=x user=x", "pitr", now=_now)
    assert probe is None
    assert [(one.id, one.severity) for one in findings] == [("server.reachable", Severity.FAIL)]


def test_what_a_role_lacks_is_named_with_the_grant_that_mends_it(server: RunningPostgres) -> None:
    server.execute("CREATE ROLE weak LOGIN")
    dsn = server.dsn.replace("user=postgres", "user=weak")
    _, findings = probe_server(dsn, "pitr", now=_now)
    found = _by_id(findings)
    for check in ("replication", "backup", "settings"):
        assert found[f"server.grant.{check}"].severity is Severity.FAIL
    for finding in findings:
        if finding.id.startswith("server.grant."):
            assert finding.hint is not None
            server.execute(finding.hint)
    _, findings = probe_server(dsn, "pitr", now=_now)
    found = _by_id(findings)
    for check in ("replication", "backup", "settings"):
        assert found[f"server.grant.{check}"].severity is Severity.OK


def test_over_the_protocol_no_file_and_no_function_is_needed(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory(17, settings={"summarize_wal": "off"})
    server.execute("CREATE ROLE afar LOGIN REPLICATION IN ROLE pg_read_all_settings")
    dsn = server.dsn.replace("user=postgres", "user=afar")
    _, findings = probe_server(dsn, "pitr", now=_now, reads_files=False)
    assert worst(findings) is not Severity.FAIL, [one for one in findings if one.severity is Severity.FAIL]
    assert {"server.grant.backup", "server.data_directory"}.isdisjoint(_by_id(findings))
    summaries = _by_id(findings)["server.summarize_wal"]
    assert summaries.severity is Severity.WARN
    assert "full" in f"{summaries.message} {summaries.hint}"
    _, findings = probe_server(dsn, "pitr", now=_now)
    assert _by_id(findings)["server.grant.backup"].severity is Severity.FAIL


def test_a_clock_that_is_off_is_seen(server: RunningPostgres) -> None:
    _, findings = probe_server(server.dsn, "pitr", now=lambda: _now() - timedelta(minutes=5))
    assert _by_id(findings)["server.clock"].severity is Severity.FAIL


@pytest.mark.parametrize(("behind_s", "severity"), [(0, Severity.OK), (300, Severity.FAIL)])
def test_the_clock_of_an_s3_region_is_compared_though_it_refuses(
    scripted_s3: ScriptedS3, behind_s: int, severity: Severity
) -> None:
    scripted_s3.script(error(403, "AccessDenied"))
    url = f"s3://bucket?endpoint={scripted_s3.endpoint}&region=us-east-1"
    (found,) = probe_clock("eu", url, now=lambda: _now() - timedelta(seconds=behind_s))
    assert (found.id, found.severity) == ("region.eu.clock", severity)
    assert list(probe_clock("eu", "file:///srv/eu", now=_now)) == []


@pytest.mark.parametrize("answer", [Answer(headers=(("Date", "yesterday"),)), None])
def test_a_clock_that_cannot_be_compared_is_a_warning(scripted_s3: ScriptedS3, answer: Answer | None) -> None:
    endpoint = scripted_s3.endpoint
    if answer is None:
        endpoint = f"http://127.0.0.1:{free_port()}"
    else:
        scripted_s3.script(answer)
    (found,) = probe_clock("eu", f"s3://bucket?endpoint={endpoint}&region=us-east-1", now=_now)
    assert (found.id, found.severity) == ("region.eu.clock", Severity.WARN)
    assert "could not be compared" in found.message


def test_the_clock_behind_a_private_authority_is_compared(
    scripted_tls_s3: ScriptedS3, tmp_path: Path
) -> None:
    scripted_tls_s3.script(error(403, "AccessDenied"))
    url = f"s3://bucket?endpoint={scripted_tls_s3.endpoint}&region=us-east-1"
    (found,) = probe_clock("eu", f"{url}&ca={tmp_path / 'tls.pem'}", now=_now)
    assert (found.id, found.severity) == ("region.eu.clock", Severity.OK)
    (found,) = probe_clock("eu", url, now=_now)
    assert found.severity is Severity.WARN
    assert "certificate" in found.message


def test_a_server_without_wal_for_us_fails(postgres_factory: PostgresFactory) -> None:
    settings = {"wal_level": "minimal", "max_wal_senders": "0", "summarize_wal": "off"}
    server = postgres_factory(settings=settings)
    _, findings = probe_server(server.dsn, "pitr", now=_now)
    found = _by_id(findings)
    assert found["server.wal_level"].severity is Severity.FAIL
    assert found["server.max_wal_senders"].severity is Severity.FAIL
    assert found["server.replication_connection"].severity is Severity.FAIL
    assert found["server.summarize_wal"].severity is Severity.WARN


def test_an_unreadable_data_directory_fails() -> None:
    assert judge_data_directory("/var/lib/x", lambda *_: False).severity is Severity.FAIL
    assert judge_data_directory("/var/lib/x", lambda *_: True).severity is Severity.OK


def test_a_region_keeps_what_it_promises_and_keeps_one_probe_only(tmp_path: Path) -> None:
    store = DirectoryStore.create(tmp_path / "eu")
    key = probe_key(REPOSITORY, Signer.generate(os.urandom).public)
    for _ in range(2):
        findings = probe_region(Region("eu", store), key)
        assert [finding.severity for finding in findings] == [Severity.OK] * 4
    assert [info.key for info in store.list_objects("probe/")] == [key]


class _Overwriting(MemoryStore):
    """A store like rclone's: it takes a second put of one key."""

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        self.delete(key)
        super().put(key, body, sha256=sha256, after_all=after_all)


def test_a_region_that_overwrites_fails() -> None:
    findings = _by_id(probe_region(Region("eu", _Overwriting()), "probe/x"))
    assert findings["region.eu.create-only"].severity is Severity.FAIL
    assert findings["region.eu.write"].severity is Severity.OK


def test_a_region_that_is_gone_is_one_finding(tmp_path: Path) -> None:
    store = DirectoryStore.create(tmp_path / "eu")
    (tmp_path / "eu").rename(tmp_path / "away")
    findings = probe_region(Region("eu", store), "probe/x")
    assert [finding.severity for finding in findings] == [Severity.FAIL]


def test_the_repository_is_looked_for_in_every_region() -> None:
    identity, host = Identity.generate(os.urandom), Signer.generate(os.urandom)
    root = identity.root_signer()
    good, empty = MemoryStore(), MemoryStore()
    repository = Repository.create(good, RepositoryRecord(REPOSITORY, _now(), str(root.public), ()), root)
    repository.write_epoch(EpochRecord(REPOSITORY, ARCHIVE, _now(), str(host.public)), root)
    regions = [Region("good", good), Region("empty", empty)]
    findings = probe_repository(regions, REPOSITORY, root.public, ARCHIVE, host.public)
    assert [finding.severity for finding in findings] == [Severity.OK, Severity.FAIL]
    other = Signer.generate(os.urandom).public
    findings = probe_repository(regions[:1], REPOSITORY, root.public, ARCHIVE, other)
    assert "another key" in findings[0].message


def test_an_identity_that_is_no_recipient_fails_the_round_trip() -> None:
    identity, stranger = Identity.generate(os.urandom), Identity.generate(os.urandom)
    recipients = [identity.recipient(best_suite())]
    arguments = {"now": _now(), "random": os.urandom}
    assert probe_envelope(recipients, identity, REPOSITORY, **arguments).severity is Severity.OK
    assert probe_envelope(recipients, stranger, REPOSITORY, **arguments).severity is Severity.FAIL


def test_an_identity_on_the_host_is_warned_of(tmp_path: Path) -> None:
    assert probe_identity_absent([tmp_path]).severity is Severity.OK
    (tmp_path / "forgotten.txt").write_text(Identity.generate(os.urandom).text())
    assert probe_identity_absent([tmp_path]).severity is Severity.WARN


def test_postgresqls_programs_are_looked_for(tmp_path: Path) -> None:
    assert probe_installation(17, None).severity is Severity.OK
    other = probe_installation(97, None)
    assert other.severity is Severity.WARN
    assert "install PostgreSQL 97" in (other.hint or "")
    named = probe_installation(17, tmp_path)
    assert (named.id, named.severity) == ("host.postgres", Severity.FAIL)
    assert f"{tmp_path} holds no PostgreSQL server" in named.message


def test_a_key_that_others_can_read_fails(tmp_path: Path) -> None:
    key = tmp_path / "signing.key"
    assert probe_signing_key(key).severity is Severity.FAIL
    key.write_text(Signer.generate(os.urandom).text())
    key.chmod(0o644)
    assert probe_signing_key(key).severity is Severity.FAIL
    key.chmod(0o600)
    assert probe_signing_key(key).severity is Severity.OK


def places(*regions: Region) -> list[tuple[str, Severity]]:
    found = probe_places(regions, probe_key(REPOSITORY, Signer.generate(os.urandom).public), os.urandom)
    return [(one.id, one.severity) for one in found]


def test_two_names_of_one_directory_are_not_two_regions(tmp_path: Path) -> None:
    one = DirectoryStore.create(tmp_path / "one")
    two = DirectoryStore.create(tmp_path / "two")
    (tmp_path / "three").symlink_to("one")
    three = DirectoryStore(tmp_path / "three")
    assert places(Region("eu", one), Region("us", two), Region("ap", three)) == [
        ("region.eu.place", Severity.OK),
        ("region.us.place", Severity.OK),
        ("region.ap.place", Severity.FAIL),
    ]


def test_two_names_of_one_bucket_are_not_two_regions(s3_server: S3Server) -> None:
    one, two = (s3_server.make_bucket(f"place-{secrets.token_hex(4)}") for _ in range(2))
    credentials = S3Credentials(s3_server.access_key, s3_server.secret_key)
    stores = []
    for bucket, host in ((one, "127.0.0.1"), (two, "127.0.0.1"), (one, "localhost")):
        endpoint = f"http://{host}:{s3_server.port}"
        store = S3Store(
            bucket,
            endpoint_url=endpoint,
            region_name=s3_server.region_name,
            credentials=credentials,
            profile=PROFILES["versitygw"],
        )
        stores.append(store)
    found = places(*(Region(name, store) for name, store in zip(("eu", "us", "ap"), stores, strict=True)))
    for store in stores:
        store.close()
    assert [severity for _, severity in found] == [Severity.OK, Severity.OK, Severity.FAIL]


def test_a_region_that_was_copied_into_another_store_is_a_region_of_its_own(tmp_path: Path) -> None:
    key = probe_key(REPOSITORY, Signer.generate(os.urandom).public)
    one, two = MemoryStore(), DirectoryStore.create(tmp_path / "two")
    assert worst(probe_places([Region("eu", one)], key, os.urandom)) is Severity.OK
    marks = [info.key for info in one.list_objects("")]
    for name in marks:
        two.put(name, one.get(name))
    for _ in range(2):
        findings = probe_places([Region("eu", one), Region("us", two)], key, os.urandom)
        assert [finding.severity for finding in findings] == [Severity.OK, Severity.OK]
    # However often it is asked, by whoever may delete.
    assert [info.key for info in one.list_objects("")] == marks


def test_the_state_directory_is_judged_before_it_exists(tmp_path: Path) -> None:
    assert probe_state_directory(tmp_path / "not" / "yet").severity is not Severity.FAIL
