"""A base backup that is killed at any step: nothing that is listed is broken, and the next one ends right."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_backup import BackupHouse
from fix_increment import SUMMARIES
from fix_kill import Fate, run_child
from fix_postgres import ONLY_17, PostgresFactory, PostgresHouse, RunningPostgres, table_digests
from fix_restore import HandArchiver, Judge, RestoreHouse, archive_of

from pitr.backup_choice import choose, newest_chain
from pitr.backup_parent import read_note
from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.lease_record import Holder
from pitr.errors import AlreadyRunning
from pitr.layout import backup_lease
from pitr.lease import check_free, newest_record
from pitr.lease_terms import LeaseTerms, held_until
from pitr.recovery import RecoveryTarget
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.local import DirectoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from verifiers.copy_data import DataReader
from verifiers.region_copies import Verdict, check_copies

# Short enough to wait for its end, and renewed many times in each backup.
TERMS = LeaseTerms(length_s=3.0, renew_s=0.5, skew_s=0.5)
HOLDER = Holder("db1", 10, "1" * 16)
SUCCESSOR = Holder("db1", 11, "1" * 16)
STRANGER = Holder("db2", 20, "2" * 16)
IDLE_S = 30.0
RESTORE_EVERY = 10
# From the files of the data directory, and over the replication protocol.
KINDS = ("full", "incr", "protocol full", "protocol incr")


@dataclass
class Doomed:
    """A server, three regions, and backups in other processes."""

    server: RunningPostgres
    folder: Path
    house: BackupHouse
    archiver: HandArchiver
    restores: RestoreHouse
    rounds: int = 0
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def regions(self) -> list[Region]:
        return [Region(name, DirectoryStore(self.folder / name)) for name in ("eu", "us", "ap")]

    @contextmanager
    def open_queue(self) -> Iterator[ReplicatedStore]:
        """Open the regions as the next process of the killed one's host does."""
        queue = RepairQueue(self.folder / "repair.sqlite")
        store = ReplicatedStore(self.regions, quorum=2, queue=queue)
        yield store
        store.close()
        queue.close()

    def manifests(self) -> list[BackupManifest]:
        return [each.manifest for each in self.house.repository.manifests(self.house.archive).backups]

    def listed(self) -> set[str]:
        return {manifest.backup for manifest in self.manifests()}

    def live(self) -> None:
        self.rounds += 1
        self.server.execute("UPDATE wide SET text = 'round ' || %s WHERE id %% 50 = %s", *[self.rounds] * 2)
        self.server.execute("INSERT INTO rounds VALUES (%s)", self.rounds)

    def back_up(self, kind: str, holder: Holder, kill_at: int = 0, kill_on: str = "") -> Fate:
        """Take a backup in another process, built on what a host would build it on."""
        is_protocol = kind.startswith("protocol")
        choice = choose(
            "full" if kind.endswith("full") else "incr",
            newest_chain(self.manifests()),
            now=datetime.now(UTC),
            full_every_s=None,
            wal_since=LSN(1),
        )
        parent = None if choice.parent is None else choice.parent.backup
        # Whether there is a manifest for the server is found out by the backup itself.
        if parent is not None and not is_protocol and read_note(self.folder / "notes", parent) is None:
            parent = None
        fields: dict[str, object] = {
            "dsn": self.server.dsn,
            "regions": [str(self.folder / region.name) for region in self.regions],
            "queue": str(self.folder / "repair.sqlite"),
            "notes": str(self.folder / "notes"),
            "root": str(self.house.repository.root),
            "archive": str(self.house.archive),
            "signer": self.house.signer.text(),
            "recipient": str(self.house.identity.recipient()),
            "parent": parent,
            "is_protocol": is_protocol,
            "holder": str(holder),
            "lease": [TERMS.length_s, TERMS.renew_s, TERMS.skew_s],
            # One region's files stand for all.
            "watched": [str(self.folder / "eu")],
            "kill_on": kill_on,
            # Each body goes through four steps there, of which a reader sees none.
            "bulk": "/staging/",
            "bulk_every": 9,
        }
        return run_child("backup", fields, kill_at, answer=self._ship)

    def _ship(self, line: str) -> str:
        _, timeline, start, end = line.split()
        is_there = self.archiver.gate(TimelineId(int(timeline)), LSN.parse(start), LSN.parse(end), 1.0)
        return "yes" if is_there else "no"

    def check_listed(self) -> None:
        """Read everything that any region lists, in full, and compare it with what was signed."""
        union = ReplicatedStore(self.regions, quorum=2)
        report = check_copies(self.house.repository, [Region("all", union)], read_data=DataReader().read_all)
        assert report.faults.faults == ()
        assert [one.verdict for one in report.regions] == [Verdict.PASS]

    def settle(self) -> None:
        """Give every region what it lacks, and see that each has all."""
        parents = self.house.store
        assert isinstance(parents, ReplicatedStore)
        assert parents.wait_idle(IDLE_S)
        with self.open_queue() as store:
            print(f"{store.reconcile().missing_copies} copies were missing")
            assert store.wait_idle(IDLE_S)
        report = check_copies(self.house.repository, self.regions)
        assert report.faults.faults == ()
        assert {one.verdict for one in report.regions} == {Verdict.PASS}

    def wait_for_lease(self) -> None:
        """See that a stranger waits for as long as the terms say, and no longer."""
        newest = newest_record(self.house.repository, self.house.archive, backup_lease(self.house.archive))
        now = datetime.now(UTC)
        until = held_until(newest, STRANGER, TERMS, now)
        if newest is None or until is None:
            return
        with pytest.raises(AlreadyRunning, match="being taken"):
            check_free(newest, STRANGER, TERMS, now)
        wait_s = (until - now).total_seconds()
        assert wait_s <= TERMS.length_s + TERMS.skew_s
        time.sleep(wait_s + 0.01)

    def check_restored(self, judge: Judge) -> None:
        """Restore the newest backup and all WAL; PostgreSQL judges the cluster, and the rows are compared."""
        self.server.switch_wal()
        expected = table_digests(self.server.dsn)
        self.archiver.ship()
        newest = newest_chain(self.manifests())
        assert newest is not None
        plan = self.restores.plan(RecoveryTarget("latest"), backup=newest.newest.backup)
        into = Path(tempfile.mkdtemp(dir=self.folder))
        into.chmod(0o755)
        request = self.restores.request(plan, into / "data", self.server, keep_running=True)
        assert judge.tables(self.restores.restore(request)) == expected
        shutil.rmtree(into)

    def drop_old(self) -> None:
        """Delete what the newest chain does not need, and what killed runs left."""
        known = {manifest.backup: manifest for manifest in self.manifests()}
        chain = newest_chain(known.values())
        assert chain is not None
        kept, at = {chain.newest.backup}, chain.newest
        while at.parent is not None:
            at = known[at.parent]
            kept.add(at.backup)
        for region in self.regions:
            for prefix, place in (("manifests/", 3), ("backups/", 3)):
                for info in list(region.store.list_objects(prefix)):
                    if info.key.split("/")[place] not in kept:
                        region.store.delete(info.key)


@pytest.fixture(scope="module")
def doomed(
    module_major: int, module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse
) -> Iterator[Doomed]:
    folder = Path(tempfile.mkdtemp(prefix="pitr-"))
    folder.chmod(0o755)
    server = module_postgres_factory(
        module_major, settings={**SUMMARIES, "wal_keep_size": "512MB"}, name="doomed"
    )
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 9) AS text FROM generate_series(1, 7500) g"
    )
    server.execute("CREATE TABLE rounds (n int)")
    regions = [Region(name, DirectoryStore.create(folder / name)) for name in ("eu", "us", "ap")]
    queue = RepairQueue(folder / "archiver.sqlite")
    store = ReplicatedStore(regions, quorum=2, queue=queue)
    house = BackupHouse(store, archive_of(server))
    archiver = HandArchiver(house, server)
    archiver.begin()
    yield Doomed(server, folder, house, archiver, RestoreHouse(house, postgres_house.user))
    store.close()
    queue.close()
    shutil.rmtree(folder)


def kill_and_go_on(doomed: Doomed, kind: str, kill_at: int, kill_on: str = "") -> Fate:
    """Kill a backup at a step; look at what is there; take the next one."""
    before = doomed.listed()
    doomed.live()
    fate = doomed.back_up(kind, HOLDER, kill_at, kill_on)
    print(kind, kill_at, fate)
    doomed.check_listed()
    after = doomed.listed()
    assert after >= before
    assert len(after - before) <= 1
    assert fate.was_killed or len(after - before) == 1
    doomed.live()
    if kill_at % 2:
        doomed.back_up(kind, SUCCESSOR)
    else:
        doomed.wait_for_lease()
        doomed.back_up(kind, STRANGER)
    assert len(doomed.listed() - after) == 1
    doomed.settle()
    return fate


@ONLY_17
@pytest.mark.few_seeds(len(KINDS), times=0)
def test_a_backup_killed_at_some_step_harms_nothing(doomed: Doomed, judge: Judge, seed: int) -> None:
    kind = KINDS[seed % len(KINDS)]
    if kind not in doomed.totals:
        doomed.back_up(kind.replace("incr", "full"), HOLDER)
        doomed.live()
        doomed.totals[kind] = doomed.back_up(kind, HOLDER).steps
    steps = doomed.totals[kind]
    kill_at = random.Random(f"{kind} {seed}").randint(1, steps)
    print(f"step {kill_at} of {steps}")
    kill_and_go_on(doomed, kind, kill_at)
    doomed.check_restored(judge)
    doomed.drop_old()


@pytest.mark.parametrize("kill_on", ["before put manifests/", "after put manifests/"])
def test_a_backup_killed_at_its_manifest_is_whole_or_not_listed(
    doomed: Doomed, judge: Judge, kill_on: str
) -> None:
    assert kill_and_go_on(doomed, "full", 1 << 30, kill_on).was_killed
    doomed.check_restored(judge)
    doomed.drop_old()


# Somewhere in the files, and late; each step is killed on 17.
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_killed_at_two_steps_on_each_major_harms_nothing(
    doomed: Doomed, judge: Judge, kind: str
) -> None:
    doomed.back_up(kind.replace("incr", "full"), HOLDER)
    doomed.live()
    steps = doomed.back_up(kind, HOLDER).steps
    for kill_at in (steps // 3, steps - steps // 8):
        kill_and_go_on(doomed, kind, kill_at)
        doomed.check_restored(judge)
        doomed.drop_old()


# Each step of each kind, dealt out to five workers.
EACH_STEP = [
    *(pytest.param(kind, n + 1, 4, id=f"{kind}-part{n}") for kind in ("full", "incr") for n in range(4)),
    *(
        pytest.param(f"protocol {kind}", n + 1, 5, id=f"protocol-{kind}-part{n}")
        for kind in ("full", "incr")
        for n in range(5)
    ),
]


@ONLY_17
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first", "stride"), EACH_STEP)
def test_a_backup_killed_at_each_step_harms_nothing(
    doomed: Doomed, judge: Judge, kind: str, first: int, stride: int
) -> None:
    doomed.back_up(kind.replace("incr", "full"), HOLDER)
    kill_at, was_killed = first - stride, True
    while was_killed:
        kill_at += stride
        fate = kill_and_go_on(doomed, kind, kill_at)
        was_killed = fate.was_killed
        if kill_at % RESTORE_EVERY < stride or not was_killed or "manifest" in fate.step:
            doomed.check_restored(judge)
        doomed.drop_old()
    doomed.check_restored(judge)
    # Threads take turns, so the number of steps varies; a step that never was would end the loop at once.
    assert kill_at > 50
