"""A restore that is killed at any step, of a full backup, of a chain, or over an old cluster (a delta): the
same call again ends right.

Where it was is in the steps; ``test_restore_killed.py`` has the named points of recovery.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain
from fix_kill import Fate, run_child
from fix_postgres import ONLY_17, PostgresFactory, PostgresHouse, table_digests
from fix_restore import Judge, examine_running

from pitr.errors import RestoreRefused
from pitr.postgres.server_user import hand_over
from pitr.recovery import RecoveryTarget
from storage.local import DirectoryStore

# The files are written where nobody looks, some thousand steps; what a kill leaves of them is thrown away, as
# what was replaced is in the end.
STAGED_EVERY = 60
KINDS = ("full", "chain", "delta")


@dataclass
class Restorable:
    """A chain of backups with a tablespace, WAL after it, and what the tables are at the end."""

    chain: Chain
    end: dict[str, str]
    totals: dict[str, int] = field(default_factory=dict)

    def backup(self, kind: str) -> str:
        return self.chain.moments[0 if kind == "full" else -1].backup.backup

    def put_old_cluster(self, folder: Path) -> None:
        """Copy the server's own files, for it is stopped, to where a delta restore replaces them."""
        origin, data, space = self.chain.server.data_dir, folder / "data", folder / "space"
        for there, here in ((origin, data), (origin.parent / "space", space)):
            subprocess.run(["cp", "-a", str(there), str(here)], check=True, timeout=120)
        (link,) = (data / "pg_tblspc").iterdir()
        link.unlink()
        link.symlink_to(space)

    def restore_and_die(self, folder: Path, kind: str, kill_at: int, kill_on: str = "") -> Fate:
        if kind == "delta" and not (folder / "data.pitr").exists():
            self.put_old_cluster(folder)
        installation = self.chain.server.instance.installation
        assert isinstance(self.chain.store, DirectoryStore)
        fields: dict[str, object] = {
            "region": str(self.chain.notes_dir.parent / "store"),
            "identity": self.chain.restores.identity.text(),
            "major": installation.major,
            "bin_dir": str(installation.bin_dir),
            "target": str(folder / "data"),
            "backup": self.backup(kind),
            "tablespaces": {"fast": str(folder / "space")},
            "is_delta": kind == "delta",
            "kill_on": kill_on,
            "bulk": "partial/|kept-gone|refused/",
            "bulk_every": STAGED_EVERY,
        }
        return run_child("restore", fields, kill_at)

    def restore(self, folder: Path, kind: str, judge: Judge) -> dict[str, str]:
        """Make the same call again; return the tables."""
        restores, server = self.chain.restores, self.chain.server
        request = restores.request(
            restores.plan(RecoveryTarget("latest"), backup=self.backup(kind)),
            folder / "data",
            server,
            tablespace_mapping={"fast": folder / "space"},
            keep_running=True,
            is_delta=kind == "delta",
        )
        return judge.tables(restores.restore(request))


@pytest.fixture(scope="module")
def restorable(
    module_major: int,
    module_postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    tmp_path_factory: pytest.TempPathFactory,
) -> Restorable:
    server = module_postgres_factory(module_major, settings=SUMMARIES, name="restorable")
    space = server.data_dir.parent / "space"
    space.mkdir()
    hand_over(space, postgres_house.user)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 10) AS t FROM generate_series(1, 9000) g"
    )
    server.execute("CREATE TABLE spaced TABLESPACE fast AS SELECT * FROM wide WHERE id < 3000")
    folder = tmp_path_factory.mktemp("restorable")
    chain = Chain(server, DirectoryStore.create(folder / "store"), postgres_house.user, folder / "notes")
    chain.back_up()
    for number in range(2):
        for table in ("wide", "spaced"):
            server.execute(f"UPDATE {table} SET t = 'round {number}' WHERE id % 300 = {number}")
        server.execute(f"CREATE TABLE new_{number} TABLESPACE fast AS SELECT {number} AS n")
        chain.back_up()
    server.execute("DELETE FROM wide WHERE id > 8000")
    server.switch_wal()
    server.execute("INSERT INTO spaced VALUES (0, 'last')")
    chain.archiver.ship()
    end = table_digests(server.dsn)
    server.stop()
    return Restorable(chain, end)


def phase_of(folder: Path) -> str | None:
    journal = folder / "data.pitr" / "pitr-restore.json"
    return str(json.loads(journal.read_text())["phase"]) if journal.exists() else None


def kill_and_repeat(
    restorable: Restorable, folder: Path, judge: Judge, kind: str, kill_at: int, kill_on: str = ""
) -> Fate:
    """Kill a restore at a step; what lies there is no part of a cluster; the next run makes it whole."""
    fate = restorable.restore_and_die(folder, kind, kill_at, kill_on)
    repeat(restorable, folder, judge, kind, fate)
    return fate


def repeat(restorable: Restorable, folder: Path, judge: Judge, kind: str, fate: Fate) -> None:
    """Look at what a killed restore left; restore again, and to the end."""
    phase = phase_of(folder)
    print(kind, phase, fate)
    if kind == "delta":
        # Whatever is there may be replaced: what the killed run had ended with, too.
        assert restorable.restore(folder, kind, judge) == restorable.end
        assert not [*folder.rglob("kept*"), *folder.rglob(".pitr-*")]
        return
    if (folder / "data" / "PG_VERSION").exists():
        # A server starts on this: so nothing may be missing.
        assert (folder / "space").is_dir()
        assert not [path for path in (folder / "space").iterdir() if path.name.startswith(".pitr")]
    is_done = phase in ("done", None) and (folder / "data" / "PG_VERSION").exists()
    if is_done:
        with pytest.raises(RestoreRefused, match=r"earlier restore|holds a PostgreSQL cluster"):
            restorable.restore(folder, kind, judge)
        # It was killed once it had promoted, and may not have stopped its server cleanly.
        instance = judge.start(restorable.chain.server, folder / "data")
        tables = table_digests(instance.dsn)
        examine_running(instance)
    else:
        tables = restorable.restore(folder, kind, judge)
    assert tables == restorable.end


# One of each kind.
@pytest.mark.few_seeds(len(KINDS), times=0)
@ONLY_17
def test_a_restore_killed_at_some_step_is_repeated(
    restorable: Restorable, server_tmp_path: Path, judge: Judge, seed: int
) -> None:
    kind = KINDS[seed % len(KINDS)]
    if kind not in restorable.totals:
        whole = server_tmp_path / "whole"
        whole.mkdir()
        restorable.totals[kind] = restorable.restore_and_die(whole, kind, 0).steps
    kill_at = random.Random(f"{kind} {seed}").randint(1, restorable.totals[kind])
    print(f"step {kill_at} of {restorable.totals[kind]}")
    kill_and_repeat(restorable, server_tmp_path, judge, kind, kill_at)


# While the server writes its new timeline's history, when its signal file is gone already.
IN_PROMOTION = ".answers.00000001.history"
# At the first write; between the places of two directories; in the removal of what was needed.
MEANT = [
    *(("chain", kill_on) for kill_on in ("pitr-restore.json", "os.rename /", IN_PROMOTION, "os.rmdir")),
    ("delta", IN_PROMOTION),
]


@pytest.mark.parametrize(("kind", "kill_on"), MEANT)
def test_a_restore_killed_where_it_hurts_is_repeated(
    restorable: Restorable, server_tmp_path: Path, judge: Judge, kind: str, kill_on: str
) -> None:
    assert kill_and_repeat(restorable, server_tmp_path, judge, kind, 0, kill_on).was_killed


# A restore that is begun anew is killed as well: as the data directory, as a tablespace goes aside; as the
# old cluster comes back; while what was made before is deleted; in the next promotion.
ASIDE = ["os.rename .*/data.pitr/refused$", r"os.rename .*/space/\.pitr-refus"]
BACK = ["os.rename .*/data$", "os.rename .*/space/PG_"]
DELETED = ["os.rmdir .*/data.pitr/refused", r"os.rmdir .*/space/\.pitr-refused"]


@pytest.mark.parametrize(
    ("kind", "kill_on"),
    [
        *(("chain", kill_on) for kill_on in (*ASIDE, *DELETED, IN_PROMOTION)),
        *(("delta", kill_on) for kill_on in (*ASIDE, *BACK, *DELETED, IN_PROMOTION)),
    ],
)
def test_a_restore_that_is_begun_anew_and_killed_again_is_repeated(
    restorable: Restorable, server_tmp_path: Path, judge: Judge, kind: str, kill_on: str
) -> None:
    assert restorable.restore_and_die(server_tmp_path, kind, 0, IN_PROMOTION).was_killed
    assert kill_and_repeat(restorable, server_tmp_path, judge, kind, 0, kill_on).was_killed


@ONLY_17
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chain", "delta"])
def test_a_restore_that_is_begun_anew_is_killed_at_each_step_of_that(
    restorable: Restorable, judge: Judge, kind: str
) -> None:
    kill_at, phases, step = 0, set[str | None](), ""
    # From there on it goes as any other.
    while not step.endswith("/data.pitr/spool"):
        kill_at += 1
        folder = Path(tempfile.mkdtemp(prefix="pitr-"))
        folder.chmod(0o755)
        try:
            assert restorable.restore_and_die(folder, kind, 0, IN_PROMOTION).was_killed
            fate = restorable.restore_and_die(folder, kind, kill_at)
            assert fate.was_killed
            step = fate.step
            phases.add(phase_of(folder))
            repeat(restorable, folder, judge, kind, fate)
        finally:
            judge.close()
            shutil.rmtree(folder)
    assert phases == {"recovering", "renewing", "files"}


# Each step of a chain, and over an old cluster; of a full backup alone, whose steps are of the same code,
# every fifth.
EACH_STEP = [
    *(pytest.param(kind, n + 1, 4, id=f"{kind}-part{n}") for kind in ("chain", "delta") for n in range(4)),
    pytest.param("full", 5, 5, id="full-part4"),
]


@ONLY_17
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first", "stride"), EACH_STEP)
def test_a_restore_killed_at_each_step_is_repeated(
    restorable: Restorable, judge: Judge, kind: str, first: int, stride: int
) -> None:
    kill_at, was_killed = first - stride, True
    while was_killed:
        kill_at += stride
        folder = Path(tempfile.mkdtemp(prefix="pitr-"))
        folder.chmod(0o755)
        try:
            was_killed = kill_and_repeat(restorable, folder, judge, kind, kill_at).was_killed
        finally:
            judge.close()
            shutil.rmtree(folder)
    assert kill_at > 50
