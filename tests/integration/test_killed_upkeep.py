"""``pitr expire --confirm`` and ``pitr backups consolidate``, killed at any change of a region's files."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_cli import MakeSite, Site
from fix_kill import Fate, run_child
from fix_postgres import table_digests
from fix_restore import RestoreReader

from pitr.pipeline.keys import IdentityFile
from pitr.recovery import RecoveryTarget
from storage.local import DirectoryStore
from storage.regions import Region
from storage.replicated import ReplicatedStore
from verifiers.copy_data import DataReader
from verifiers.region_copies import Verdict, check_copies

# The shortest that may be configured.
WINDOW_S = 10
# Each body goes through four steps in staging, of which a reader sees none.
STAGED_EVERY = 9
RESTORE_EVERY = 20


@dataclass
class Upkeep:
    """A site without its daemon, whose regions can be put back to what they were."""

    site: Site
    old: set[str]
    kept: set[str]
    expected: dict[str, str]
    made_at: float
    totals: dict[str, int] = field(default_factory=dict)
    ends: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    rounds: int = 0

    @property
    def pristine(self) -> Path:
        return self.site.folder / "pristine"

    @property
    def scratch(self) -> Path:
        return self.site.folder / "scratch"

    @property
    def reader(self) -> RestoreReader:
        """Whoever has the identity and all regions."""
        regions = [Region(one.name, DirectoryStore(one.path)) for one in self.site.regions]
        identity = IdentityFile.parse(self.site.identity.read_text()).identity
        return RestoreReader(ReplicatedStore(regions, quorum=2), identity)

    def save(self) -> None:
        for region in self.site.regions:
            shutil.copytree(region.path, self.pristine / region.name)

    def begin_again(self) -> None:
        self.rounds += 1
        for region in self.site.regions:
            shutil.rmtree(region.path)
            shutil.copytree(self.pristine / region.name, region.path)

    def keys(self) -> dict[str, set[str]]:
        return {region.name: set(region.objects()) for region in self.site.regions}

    def words(self, verb: str) -> list[str]:
        """Return the command: the same one each time, though a killed one left its scratch directory."""
        identity = ["--identity", str(self.site.identity)]
        if verb == "expire":
            words = ["expire", *identity, "--confirm", "--yes", "--grace", "0s"]
        else:
            words = ["backups", "consolidate", "--scratch", str(self.scratch), *identity]
        return ["-c", str(self.site.config), *words]

    def run(self, verb: str, kill_at: int) -> Fate:
        fields: dict[str, object] = {
            "words": self.words(verb),
            "watched": [str(region.path) for region in self.site.regions],
            "bulk": "/staging/",
            "bulk_every": STAGED_EVERY,
        }
        program = self.site.program
        return run_child("pitr", fields, kill_at, cwd=program.folder, env=program.env())

    def check_readable(self) -> set[str]:
        """See that all that is listed is whole, for readers of each region and of all; return what is."""
        reader = self.reader
        for name, store in [("all", reader.store), *((r.name, r.store) for r in reader.store.regions)]:  # type: ignore[attr-defined]
            alone = reader.repository.alone(store)
            report = check_copies(alone, [Region(name, store)], read_data=DataReader().read_all)
            assert report.faults.faults == (), name
            assert [one.verdict for one in report.regions] == [Verdict.PASS]
        listed = {backup.backup for backup in reader.survey().backups}
        for backup in self.kept:
            for target in ("immediate", "latest"):
                # Refuses a hole, and reads the WAL where it stops.
                assert reader.plan(RecoveryTarget(target), backup=backup).stop is not None
        return listed

    def check_restored(self) -> None:
        """Restore from what is left; PostgreSQL's own tools judge the cluster, and the rows are compared."""
        into = self.site.folder / f"restored-{self.rounds}"
        restored = self.site.restore("latest", into, "--start")
        assert table_digests(restored.data["dsn"]) == self.expected
        self.site.examine(into)
        shutil.rmtree(into)
        shutil.rmtree(into.with_name(f"{into.name}.pitr"), ignore_errors=True)


@pytest.fixture(scope="module")
def upkeep(module_make_site: MakeSite) -> Upkeep:
    site = module_make_site(settings={"summarize_wal": "on"})
    site.server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 5) AS text FROM generate_series(1, 5000) g"
    )
    site.set_option('pitr_window = "35d"', f'pitr_window = "{WINDOW_S}s"')
    site.set_option("minimum_backups = 2", "minimum_backups = 1")
    site.start_daemon()
    taken = [name.rpartition("/")[2] for name in site.backups()]
    for kind in ("incr", "full", "incr"):
        site.server.execute("UPDATE wide SET text = %s WHERE mod(id, 50) = %s", kind, len(taken))
        taken.append(site("backup", "--type", kind, "--json").data["backup"]["backup"])
        site.server.switch_wal()
    made_at = time.monotonic()
    site.server.execute("DELETE FROM wide WHERE mod(id, 50) = 7")
    expected = table_digests(site.server.dsn)
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    found = Upkeep(site, set(taken[:2]), set(taken[2:]), expected, made_at)
    found.save()
    return found


def kill_consolidation(upkeep: Upkeep, kill_at: int) -> Fate:
    """Kill it at a step; what is listed is whole; unless it was done the next run does it."""
    upkeep.begin_again()
    fate = upkeep.run("consolidate", kill_at)
    print(kill_at, fate)
    listed = upkeep.check_readable()
    made = listed - upkeep.old - upkeep.kept
    assert len(made) <= 1
    assert made or fate.was_killed
    upkeep.site.program(*upkeep.words("consolidate"), exit_code=None if made else 0)
    assert not upkeep.scratch.exists()
    assert len(upkeep.check_readable() - upkeep.old - upkeep.kept) == 1
    return fate


def kill_expiry(upkeep: Upkeep, kill_at: int) -> Fate:
    """Kill it at a step; what is kept is whole; the next run leaves what one that lived leaves."""
    upkeep.begin_again()
    fate = upkeep.run("expire", kill_at)
    print(kill_at, fate)
    listed = upkeep.check_readable()
    assert listed >= upkeep.kept
    upkeep.site.program(*upkeep.words("expire"))
    assert upkeep.check_readable() == upkeep.kept
    assert upkeep.keys() == upkeep.ends["expire"]
    return fate


KILLS = {"consolidate": kill_consolidation, "expire": kill_expiry}


def prepare(upkeep: Upkeep, verb: str) -> int:
    """Let one run live; return its steps."""
    if verb not in upkeep.totals:
        if verb == "expire":
            time.sleep(max(0.0, upkeep.made_at + WINDOW_S + 2 - time.monotonic()))
        upkeep.begin_again()
        upkeep.totals[verb] = upkeep.run(verb, 0).steps
        upkeep.ends[verb] = upkeep.keys()
        upkeep.check_readable()
    return upkeep.totals[verb]


# The first is what need not wait until the window has moved.
@pytest.mark.parametrize("verb", ["consolidate", "expire"])
def test_upkeep_killed_at_some_step_harms_nothing(
    request: pytest.FixtureRequest, upkeep: Upkeep, verb: str
) -> None:
    seed = request.config.getoption("first_seed")
    print(f"repeat it with --first-seed {seed}")
    steps = prepare(upkeep, verb)
    kill_at = random.Random(f"{verb} {seed}").randint(1, steps)
    print(f"step {kill_at} of {steps}")
    KILLS[verb](upkeep, kill_at)
    upkeep.check_restored()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["consolidate", "expire"])
def test_upkeep_killed_at_each_step_harms_nothing(upkeep: Upkeep, verb: str) -> None:
    prepare(upkeep, verb)
    kill_at, was_killed = 0, True
    while was_killed:
        kill_at += 1
        was_killed = KILLS[verb](upkeep, kill_at).was_killed
        if kill_at % RESTORE_EVERY == 0:
            upkeep.check_restored()
    upkeep.check_restored()
    assert kill_at > 20
