"""A cluster's life drawn at random: what is done to tables and databases, backups, moments to return to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fix_backup import BackupHouse
from fix_postgres import RunningPostgres, table_digests
from fix_restore import HandArchiver, RestoreHouse, archive_of

from pitr.backup_choice import choose, newest_chain
from pitr.backup_parent import ParentBackup, read_note
from pitr.backup_remote import RemoteRequest, take_remote_backup
from pitr.backup_request import BackupWriter
from pitr.catalogue.backup_record import BackupManifest
from pitr.consolidate import ConsolidateRequest, consolidate
from pitr.datakeys import DataKeys
from pitr.postgres.server_user import ServerUser
from pitr.survey import KnownBackups, chain_of
from pitr.wal.lsn import LSN
from storage.store import ObjectStore

TABLES_MAX = 5
DATABASES_MAX = 3
TABLESPACE = "fast"


@dataclass(frozen=True)
class Step:
    """One thing that happens; ``pick`` chooses among what is there, ``size`` says how much."""

    what: str
    pick: int
    size: int


@dataclass(frozen=True)
class Moment:
    """A restore point, the LSN behind it, and what every table of every database was then."""

    name: str
    at: LSN
    databases: tuple[str, ...]
    tables: dict[str, str]


@dataclass
class Life:
    """What has happened to one server since it was emptied; each step's name is a method's."""

    server: RunningPostgres
    store: ObjectStore
    user: ServerUser | None
    folder: Path
    moments: list[Moment] = field(default_factory=list)
    backups: list[BackupManifest] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    _tables: dict[str, bool] = field(default_factory=dict)
    _databases: list[str] = field(default_factory=list)
    _numbers: int = 0

    def __post_init__(self) -> None:
        for (name,) in self.server.execute("SELECT datname FROM pg_database WHERE datname LIKE 'd\\_%'"):
            self.server.execute(f"DROP DATABASE {name}")
        self.server.execute("DROP SCHEMA public CASCADE")
        self.server.execute("CREATE SCHEMA public")
        self.house = BackupHouse(self.store, archive_of(self.server))
        self.archiver = HandArchiver(self.house, self.server)
        self.archiver.begin()
        self.restores = RestoreHouse(self.house, self.user)

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    def do(self, step: Step) -> None:
        """Do a step; one that needs what is not there does nothing."""
        action: Callable[[Step], str | None] = getattr(self, step.what)
        said = action(step)
        self.told.append(f"{step.what} {step.size}: {said}")

    def mark(self) -> Moment:
        """Remember what there is."""
        databases = ("postgres", *self._databases)
        tables = table_digests(self.server.dsn, databases)
        for name, is_unlogged in self._tables.items():
            if is_unlogged:
                # Neither a base backup nor a crash leaves its rows.
                tables[f"postgres.public.{name}"] = "0:0"
        name = f"moment-{len(self.moments)}"
        self.server.execute("SELECT pg_create_restore_point(%s)", name)
        at = LSN.parse(str(self.server.value("SELECT pg_current_wal_insert_lsn()")))
        self.moments.append(Moment(name, at, databases, tables))
        return self.moments[-1]

    # -- tables

    def create_table(self, step: Step) -> str | None:
        if len(self._tables) >= TABLES_MAX:
            return None
        name = f"t_{self._number()}"
        is_unlogged = step.pick % 5 == 4
        space = f"TABLESPACE {TABLESPACE}" if step.pick % 3 == 1 else ""
        kind = "UNLOGGED" if is_unlogged else ""
        self.server.execute(f"CREATE {kind} TABLE {name} (id int, text text) {space}")
        self._tables[name] = is_unlogged
        return self._insert(name, step.size * 40)

    def insert_rows(self, step: Step) -> str | None:
        return self._on_table(step, lambda name: self._insert(name, step.size * 100))

    def insert_large_rows(self, step: Step) -> str | None:
        """Rows that go out of line and do not compress."""

        def insert(name: str) -> str:
            large = f"(SELECT string_agg(md5((g * h)::text || '{self._number()}'), '')"
            return self._run(
                f"INSERT INTO {name} SELECT g, {large} FROM generate_series(1, 300) h)"
                f" FROM generate_series(1, {1 + step.size // 4}) g"
            )

        return self._on_table(step, insert)

    def update_rows(self, step: Step) -> str | None:
        number = self._number()
        return self._on_table(
            step,
            lambda name: self._run(
                f"UPDATE {name} SET text = 'u{number} ' || left(text, 90) WHERE id % 17 <= {step.size % 17}"
            ),
        )

    def delete_rows(self, step: Step) -> str | None:
        return self._on_table(
            step, lambda name: self._run(f"DELETE FROM {name} WHERE id % 7 = {step.size % 7}")
        )

    def delete_the_end(self, step: Step) -> str | None:
        """What VACUUM then cuts off."""
        return self._on_table(step, lambda name: self._run(f"DELETE FROM {name} WHERE id > {step.size * 10}"))

    def truncate(self, step: Step) -> str | None:
        return self._on_table(step, lambda name: self._run(f"TRUNCATE {name}"))

    def drop_table(self, step: Step) -> str | None:
        def drop(name: str) -> str:
            del self._tables[name]
            return self._run(f"DROP TABLE {name}")

        return self._on_table(step, drop)

    def vacuum(self, step: Step) -> str | None:
        return self._on_table(step, lambda name: self._run(f"VACUUM (TRUNCATE true) {name}"))

    def vacuum_full(self, step: Step) -> str | None:
        return self._on_table(step, lambda name: self._run(f"VACUUM FULL {name}"))

    def create_index(self, step: Step) -> str | None:
        return self._on_table(step, lambda name: self._run(f"CREATE INDEX ON {name} (id, left(text, 50))"))

    def move_table(self, step: Step) -> str | None:
        space = TABLESPACE if step.size % 2 else "pg_default"
        return self._on_table(step, lambda name: self._run(f"ALTER TABLE {name} SET TABLESPACE {space}"))

    def roll_back(self, step: Step) -> str | None:
        return self._on_table(
            step,
            lambda name: self._run(
                f"DO $$ BEGIN DELETE FROM {name}; RAISE EXCEPTION 'no'; "
                "EXCEPTION WHEN raise_exception THEN NULL; END $$"
            ),
        )

    # -- databases and the server

    def create_database(self, step: Step) -> str | None:
        if len(self._databases) >= DATABASES_MAX:
            return None
        name = f"d_{self._number()}"
        template = self._databases[step.pick % len(self._databases)] if self._databases else "template1"
        strategy = "FILE_COPY" if step.size % 2 else "WAL_LOG"
        space = f"TABLESPACE {TABLESPACE}" if step.pick % 4 == 1 else ""
        said = self._run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy} {space}")
        self._databases.append(name)
        words = (
            f"CREATE TABLE own_{name} AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 500) g"
        )
        self.server.execute(words, dbname=name)
        return said

    def drop_database(self, step: Step) -> str | None:
        if not self._databases:
            return None
        return self._run(f"DROP DATABASE {self._databases.pop(step.pick % len(self._databases))}")

    def checkpoint(self, step: Step) -> str:
        return self._run("CHECKPOINT")

    def switch_wal(self, step: Step) -> str:
        return self._run("SELECT pg_switch_wal()")

    # -- backups

    def back_up_full(self, step: Step) -> str:
        return self._back_up(None)

    def back_up_changes(self, step: Step) -> str:
        return self._back_up(self._parent())

    def back_up_by_pages(self, step: Step) -> str:
        return self._back_up(self._parent(), compare_pages=True)

    def back_up_remotely(self, step: Step) -> str:
        """Over the protocol; the next one over it may build on it."""
        newest = self.backups[-1] if self.backups else None
        known = newest is not None and (self.notes / f"{newest.backup}.server-manifest").exists()
        manifest = take_remote_backup(
            RemoteRequest(
                self.server.dsn, self.house.archive, "from afar", self.notes, newest if known else None
            ),
            BackupWriter(self.house.repository, self.house.signer, [self.house.identity.recipient()]),
            self.archiver.gate,
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
        )
        self.backups.append(manifest)
        return manifest.backup

    def consolidate_chain(self, step: Step) -> str | None:
        known = {manifest.backup: manifest for manifest in self._manifests()}
        standing = {manifest.stands_for for manifest in known.values()}
        built = [m for m in known.values() if m.parent is not None and m.backup not in standing]
        if not built:
            return None
        newest = sorted(built, key=lambda manifest: manifest.backup)[step.pick % len(built)]
        parents = chain_of(newest, KnownBackups(known.values()))
        assert not isinstance(parents, str), parents
        scratch = self.folder / f"scratch-{self._number()}"
        scratch.mkdir()
        repository = self.restores.repository
        done = consolidate(
            ConsolidateRequest([newest, *parents], scratch),
            repository,
            DataKeys(repository, self.house.identity),
            self.house.identity.root_signer(),
            [self.house.identity.recipient()],
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
        )
        shutil.rmtree(scratch)
        self.backups.append(done.manifest)
        return f"{done.manifest.backup} stands for {newest.backup}"

    def _back_up(self, parent: ParentBackup | None, *, compare_pages: bool = False) -> str:
        manifest = self.house.back_up(
            self.server.dsn,
            wait_for_wal=self.archiver.gate,
            notes_dir=self.notes,
            parent=parent,
            compare_pages=compare_pages,
        )
        self.backups.append(manifest)
        return f"{manifest.backup} on {manifest.parent}"

    def _manifests(self) -> list[BackupManifest]:
        return [listed.manifest for listed in self.house.repository.manifests(self.house.archive).backups]

    def _parent(self) -> ParentBackup | None:
        """Return what a host would build on."""
        choice = choose(
            "incr",
            newest_chain(self._manifests()),
            now=datetime.now(UTC),
            full_every_s=None,
            wal_since=LSN(1),
        )
        note = None if choice.parent is None else read_note(self.notes, choice.parent.backup)
        return None if choice.parent is None or note is None else ParentBackup(choice.parent, note)

    # -- words

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _run(self, statement: str) -> str:
        self.server.execute(statement)
        return statement

    def _insert(self, name: str, rows: int) -> str:
        text = f"md5((g * {self._number()})::text)"
        return self._run(f"INSERT INTO {name} SELECT g, {text} FROM generate_series(1, {rows}) g")

    def _on_table(self, step: Step, act: Callable[[str], str]) -> str | None:
        if not self._tables:
            return None
        return act(sorted(self._tables)[step.pick % len(self._tables)])


HAPPENINGS = (
    *("create_table", "insert_rows", "insert_rows", "insert_large_rows", "update_rows", "update_rows"),
    *("delete_rows", "delete_the_end", "truncate", "drop_table", "vacuum", "vacuum", "vacuum_full"),
    *("create_index", "move_table", "roll_back", "create_database", "drop_database", "checkpoint"),
    "switch_wal",
)
BACKUPS = (
    *("back_up_changes", "back_up_changes", "back_up_by_pages", "back_up_full", "consolidate_chain"),
    "back_up_remotely",
)
