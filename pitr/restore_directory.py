"""A data directory in the making: the backup's files, what PostgreSQL needs beside them, and its judgement.

Everything happens in the staging folders of a ``RestorePlace``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pitr.errors import RecoveryFailed, RestoreRefused
from pitr.fetch_desk import fetch_script, script_command
from pitr.pipeline.packs import IndexFile
from pitr.postgres.installation import Installation
from pitr.postgres.manifest import BackupManifestWriter
from pitr.postgres.server_user import ServerUser, as_user, hand_over
from pitr.recovery import recovery_settings, with_recovery_settings, without_recovery_settings
from pitr.restore_files import ChainLink, FileProgress, FileRestorer, RestoredFiles
from pitr.restore_keep import OldDirectory
from pitr.restore_place import sync_filesystems
from pitr.restore_plan import StopPoint
from pitr.restore_staged import OURS, RestorePlace, StagedDirectory
from pitr.wal.timeline import TimelineId
from storage.store import ObjectStore

AUTO_CONF: Final = "postgresql.auto.conf"
NOTES_NAME: Final = "files.sqlite"
_VERIFY_TIMEOUT_S: Final = 24 * 3600.0
_DETAIL_CHARS_MAX: Final = 4000
_TABLESPACE_LINE: Final = re.compile(rb"([1-9][0-9]*) ((?:[^\\\n]|\\.)*)\n", re.DOTALL)


class FilesDiffer(RecoveryFailed):
    """``pg_verifybackup`` found restored files that are not what was backed up."""


class DirectoryBuilder:
    """Builds a data directory and its tablespaces: ``fetch``, ``add_recovery``, ``finish``, in this order."""

    def __init__(
        self,
        chain: Sequence[ChainLink],
        place: RestorePlace,
        *,
        user: ServerUser | None,
        workers: int,
        patience_s: float,
        old: OldDirectory | None = None,
    ) -> None:
        self._old = old
        self._chain = chain
        self._manifest = chain[0].manifest
        self._place = place
        self._user = user
        self._workers = workers
        self._patience_s = patience_s
        self._root = place.data.staging

    def fetch(self, store: ObjectStore, on_progress: Callable[[FileProgress], None]) -> RestoredFiles:
        """Write the backup's files and PostgreSQL's ``backup_manifest``.  Raises as ``FileRestorer.run``."""
        for directory in self._place.directories:
            directory.begin(self._user)
        manifest = self._manifest
        with (self._root / "backup_manifest").open("wb") as stream:
            writer = BackupManifestWriter(
                stream,
                server_version=manifest.server_version,
                system_identifier=manifest.archive.system_identifier,
            )

            def list_file(file: IndexFile) -> None:
                assert file.crc32c is not None, "a file that was put together has its sum"
                writer.add_file(file.path, file.size_bytes, file.mtime, file.crc32c)

            restored = FileRestorer(
                store,
                self._chain,
                self._root,
                {oid: directory.staging for oid, directory in self._place.tablespaces},
                self._place.work.path / NOTES_NAME,
                on_file=list_file,
                on_progress=on_progress,
                workers=self._workers,
                patience_s=self._patience_s,
                old=self._old,
            ).run()
            self._add_labels(writer)
            writer.finish(manifest.timeline, manifest.start_lsn, manifest.stop_lsn)
        return restored

    def add_recovery(self, timeline: TimelineId, stop: StopPoint, fetch_command: Sequence[str]) -> None:
        """Tell the server to recover up to ``stop`` when it is started."""
        work = self._place.work
        work.desk.script.write_text(fetch_script(work.desk, work.plan_file, fetch_command), encoding="utf-8")
        settings = recovery_settings(
            restore_command=script_command(work.desk.script),
            timeline=timeline,
            stop_lsn=stop.target_lsn,
            is_inclusive=stop.is_inclusive,
        )
        auto_conf = self._root / AUTO_CONF
        # The file may hold any bytes that ALTER SYSTEM was given.
        text = auto_conf.read_text("utf-8", "surrogateescape") if auto_conf.exists() else ""
        auto_conf.write_text(with_recovery_settings(text, settings), "utf-8", "surrogateescape")
        auto_conf.chmod(0o600)
        # A standby's backup holds one, and it would go before ours: then recovery has no target.
        (self._root / "standby.signal").unlink(missing_ok=True)
        (self._root / "recovery.signal").touch(mode=0o600)

    def finish(self) -> None:
        """Link tablespaces and WAL, hand everything to the server's user and make it durable."""
        links = self._root / "pg_tblspc"
        for oid, directory in self._place.tablespaces:
            (links / str(oid)).symlink_to(directory.final)
        (self._root / "pg_wal" / "archive_status").mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._place.wal is not None:
            self._link_wal(self._place.wal)
        if dict(self._manifest.settings).get("data_directory_mode") == "0750":
            self._root.chmod(0o750)
            if self._place.wal is not None:
                self._place.wal.staging.chmod(0o750)
        for directory in self._place.directories:
            hand_over(directory.staging, self._user)
        try:
            sync_filesystems(directory.staging for directory in self._place.directories)
        except OSError as cause:
            raise RestoreRefused("the restored files could not be made durable", detail=str(cause)) from cause

    def _link_wal(self, wal: StagedDirectory) -> None:
        """Move what pg_wal holds to its own place, and leave a link, as ``initdb --waldir`` does."""
        inner = self._root / "pg_wal"
        for entry in inner.iterdir():
            shutil.move(entry, wal.staging / entry.name)
        inner.rmdir()
        inner.symlink_to(wal.final)

    def _add_labels(self, writer: BackupManifestWriter) -> None:
        """Write what pg_backup_stop returned; the map must name the places that are used now."""
        contents = {b"backup_label": self._manifest.backup_label}
        if self._manifest.tablespace_map:
            places = {oid: directory.final for oid, directory in self._place.tablespaces}
            contents[b"tablespace_map"] = moved_map(self._manifest.tablespace_map, places)
        for name, content in contents.items():
            path = self._root / name.decode("ascii")
            path.write_bytes(content)
            path.chmod(0o600)
            writer.add_content(name, content, int(self._manifest.stopped_at.timestamp()))


def remove_recovery(auto_conf: Path, user: ServerUser | None) -> None:
    """Take our settings out of postgresql.auto.conf: the next start must not look for our spool."""
    text = auto_conf.read_text("utf-8", "surrogateescape")
    staged = auto_conf.with_name(f"{AUTO_CONF}.pitr")
    staged.write_text(without_recovery_settings(text), "utf-8", "surrogateescape")
    staged.chmod(0o600)
    hand_over(staged, user)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    staged.replace(auto_conf)


def moved_map(tablespace_map: bytes, places: dict[int, Path]) -> bytes:
    """Return a tablespace_map with the tablespaces at their new places.

    Reference: PostgreSQL src/backend/access/transam/xlogrecovery.c (read_tablespace_map).
    """

    def moved(match: re.Match[bytes]) -> bytes:
        place = places.get(int(match[1]))
        if place is None:
            return match[0]
        escaped = re.sub(rb"([\n\r\\])", rb"\\\1", str(place).encode("utf-8", "surrogateescape"))
        return b"%s %s\n" % (match[1], escaped)

    return _TABLESPACE_LINE.sub(moved, tablespace_map)


def verify_directory(installation: Installation, data_dir: Path, user: ServerUser | None) -> None:
    """Let PostgreSQL's own ``pg_verifybackup`` read every file, before the first start changes any.

    WAL is not looked at here: replay checks each of its records.  Raises FilesDiffer.
    """
    prefix, options = as_user(user)
    folders = ["", *(f"pg_tblspc/{link.name}/" for link in (data_dir / "pg_tblspc").glob("*"))]
    names = ["lost+found", *(f"{folder}{name}" for folder in folders for name in OURS)]
    ignored = [word for name in names for word in ("-i", name)]
    command = [str(installation.tool("pg_verifybackup")), "-n", "-q", *ignored, str(data_dir)]
    try:
        done = subprocess.run(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERIFY_TIMEOUT_S,
            check=False,
            cwd="/",
            **options,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise RestoreRefused("pg_verifybackup could not be run", detail=str(cause)) from cause
    if done.returncode != 0:
        words = (done.stderr + done.stdout).decode("utf-8", "replace")
        raise FilesDiffer(
            "pg_verifybackup does not accept the restored files",
            detail=words.strip()[:_DETAIL_CHARS_MAX],
            hint="the files were set aside; check the disk, and restore again",
        )
