"""The regions' own copies of logs, checkpoints, reports and fingerprints: compared, verified, made again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import fix_reports as fix
import pytest
from fix_period import issued

from pitr.catalogue.records import RepositoryRecord
from pitr.layout import report_prefix
from pitr.pipeline.keys import Identity, best_suite
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.copy_faults import FaultKind
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from verifiers.audit_log import AuditLog
from verifiers.fingerprint import Fingerprint, put_fingerprint
from verifiers.region_copies import Verdict, check_copies
from verifiers.table_digests import ClusterDigests, TableDigest
from verifiers.verifier_copies import check_verifier_copies

ROOT = Identity(bytes(range(32))).root_signer()
KINDS = ("log/", "reports/", "fingerprints/")


class Regions:
    """Three regions with two reports, one of them certified, and a fingerprint."""

    def __init__(self, folder: Path) -> None:
        self.stores = {name: MemoryStore() for name in ("eu", "us", "ap")}
        regions = [Region(name, store) for name, store in self.stores.items()]
        recipient = str(Identity(bytes(range(32))).recipient(best_suite()))
        record = RepositoryRecord(fix.REPOSITORY, fix.BEGIN, str(ROOT.public), (recipient,))
        for region in regions:
            Repository.create(region.store, record, ROOT)
        self.queue = RepairQueue(folder / "repair.sqlite")
        self.store = ReplicatedStore(regions, quorum=2, queue=self.queue)
        log = AuditLog(self.store, fix.REPOSITORY, fix.VERIFIER)
        fix.run_week(log, 1)
        fix.run_week(log, 2)
        fix.certify(log, 1)
        issued(log)
        digests = ClusterDigests((TableDigest("d.s.t", 2, "10"),), (("d", "aa"),))
        for lsn in (LSN(0x300), LSN(0x400)):
            taken = Fingerprint(fix.REPOSITORY, fix.SYSTEM, TimelineId(1), lsn, fix.BEGIN, 170000, digests)
            put_fingerprint(self.store, taken, fix.VERIFIER)
        assert self.store.wait_idle(30)

    def names(self) -> list[str]:
        store = self.stores["us"]
        return [info.key for kind in KINDS for info in store.list_objects(kind)]

    def rewrite(self, region: str, key: str, body: bytes) -> None:
        self.stores[region].delete(key)
        self.stores[region].put(key, body)

    def faults(self) -> list[tuple[str, str, FaultKind]]:
        repository = Repository(self.store, fix.REPOSITORY, ROOT.public)
        report = check_copies(repository, self.store.regions, others=check_verifier_copies)
        assert all(one.objects > 0 for one in report.regions)
        found = [(fault.region, fault.key, fault.kind) for fault in report.faults.faults]
        assert {one.region for one in report.regions if one.verdict is Verdict.FAIL} == {
            r for r, _, _ in found
        }
        return found


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[Regions]:
    found = Regions(tmp_path)
    yield found
    found.store.close(10)
    found.queue.close()


def test_each_copy_of_what_a_verifier_put_is_looked_at_in_each_region(regions: Regions) -> None:
    assert regions.faults() == []
    keys = regions.names()
    parts = {key.rpartition("/")[2].partition("-")[0] for key in keys if key.startswith("reports/")}
    assert parts == {"report", "test", "html", "certification"}
    for number, key in enumerate(keys):
        region = ("eu", "us", "ap")[number % 3]
        body = bytes(regions.stores[region].get(key))
        cut = bytearray(body)
        cut[len(cut) // 2] ^= 1
        regions.rewrite(region, key, bytes(cut))
        assert regions.faults() == [(region, key, FaultKind.DAMAGED)]
        regions.stores[region].delete(key)
        assert regions.faults() == [(region, key, FaultKind.MISSING)]
        regions.stores[region].put(key, body)
    assert regions.faults() == []


@pytest.mark.parametrize("kind", ["log/", "reports/", "fingerprints/"])
def test_a_genuine_object_in_the_place_of_another_is_damage(regions: Regions, kind: str) -> None:
    like = [
        key
        for key in regions.names()
        if key.startswith(kind) and "/period-" not in key and key.endswith("/report") == (kind == "reports/")
    ]
    one, other = like[0], like[1]
    regions.rewrite("us", one, bytes(regions.stores["us"].get(other)))
    assert regions.faults() == [("us", one, FaultKind.DAMAGED)]


def test_two_reports_of_one_number_are_told_of_as_two_writers(regions: Regions, tmp_path: Path) -> None:
    del tmp_path
    store = MemoryStore()
    log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
    at = fix.BEGIN + fix.WEEK
    fix.issue_report(log, fix.intend(log, 1, at), fix.draft(1, at, fails=True), at + timedelta(minutes=6))
    key = report_prefix(fix.VERIFIER.public.key_id, fix.SYSTEM, 1) + "report"
    regions.rewrite("ap", key, bytes(store.get(key)))
    assert regions.faults() == [("ap", key, FaultKind.CONFLICTS)]


def test_a_region_that_lost_all_of_it_gets_it_again(regions: Regions) -> None:
    keys = regions.names()
    for key in keys:
        regions.stores["ap"].delete(key)
    assert sorted(regions.faults()) == sorted(("ap", key, FaultKind.MISSING) for key in keys)
    regions.store.reconcile()
    assert regions.store.wait_idle(30)
    assert regions.faults() == []


def test_a_log_whose_key_nobody_knows_is_compared_all_the_same(regions: Regions) -> None:
    first = next(key for key in reversed(regions.names()) if "/entry/" in key)
    for name in regions.stores:
        regions.stores[name].delete(first)
    other = next(key for key in regions.names() if "/entry/" in key)
    regions.stores["eu"].delete(other)
    assert regions.faults() == [("eu", other, FaultKind.MISSING)]
