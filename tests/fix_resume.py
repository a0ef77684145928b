"""Backups that die on the way: a server, its archive, and the process that takes one and is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fix_increment import SUMMARIES, Chain, Moment
from fix_postgres import PostgresHouse, RunningPostgres
from fix_restore import Judge
from fix_stores import FaultyStore

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.lease_record import Holder
from storage.local import DirectoryStore

CHILD = Path(__file__).parent / "backup_child.py"
# One worker and one put at a time: what is stored when it is killed is always the same.
SMALL = {"workers": 1, "puts_in_flight": 1, "pack_bytes_max": 512 * 1024}
RESUME_SETTINGS = {**SUMMARIES, "max_wal_size": "4GB"}


def fill_tables(server: RunningPostgres) -> None:
    """Make a table that does not compress, of several packs, and small ones."""
    server.execute("CREATE TABLE big (id int PRIMARY KEY, text text)")
    words = " || ".join(f"md5('{word}' || g)" for word in "abcdefgh")
    server.execute(f"INSERT INTO big SELECT g, {words} FROM generate_series(1, 50000) g")
    rows = "SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 9000) g"
    for number in range(4):
        server.execute(f"CREATE TABLE t{number} AS {rows}")
    server.execute("VACUUM (FREEZE, ANALYZE)")
    server.execute("CHECKPOINT")


@dataclass
class Interruptions:
    """A server whose backups are interrupted, each as often as a test says."""

    server: RunningPostgres
    postgres: PostgresHouse
    folder: Path
    judge: Judge
    options: dict[str, object] = field(default_factory=lambda: dict(SMALL))

    def __post_init__(self) -> None:
        self.store = FaultyStore(DirectoryStore.create(self.folder / "store"))
        self.notes = self.folder / "notes"
        self.chain = Chain(self.server, self.store, self.postgres.user, self.notes)

    def interrupt(self, packs: int, parent: str | None = None, **options: object) -> None:
        """Take a backup in another process, which is killed when ``packs`` packs are stored, or all are."""
        house = self.chain.house
        asked = {
            "store": str(self.folder / "store"),
            "identity": house.identity.text(),
            "signer": house.signer.text(),
            "archive": str(house.archive),
            "dsn": self.server.dsn,
            "notes": str(self.notes),
            "packs": packs,
            "parent": parent,
            "options": {**self.options, **options},
        }
        done = subprocess.run(
            [sys.executable, str(CHILD)],
            input=json.dumps(asked),
            capture_output=True,
            check=False,
            timeout=120,
            text=True,
        )
        assert done.returncode == -9, f"it was not killed: {done.returncode} {done.stderr[-2000:]}"

    def back_up(self, **options: object) -> BackupManifest:
        """Take the next backup in this process."""
        self.store.calls.clear()
        holder = Holder.of_host("host", os.getpid(), "5e" * 8)
        return self.chain.back_up(holder=holder, **{**self.options, **options})

    def journals(self) -> list[Path]:
        return sorted(self.notes.glob("*.resume-*"))

    def packs_put(self) -> list[str]:
        """Return the packs that the last backup in this process has sent."""
        return sorted(key for operation, key in self.store.calls if operation == "put" and "/pack-" in key)

    def told(self) -> str:
        return " ".join(self.chain.house.progress[-1].notes)

    def check(self, moment: Moment, name: str = "restored") -> None:
        """Restore the cluster as it was at a moment; PostgreSQL's tools and the tables must agree."""
        chain = self.chain
        plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
        target = self.folder / name
        chain.restores.restore(chain.restores.request(plan, target, self.server, verify_files=True))
        assert self.judge.examine(self.server, target) == moment.tables
