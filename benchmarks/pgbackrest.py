"""The peer pgBackRest: one stanza, encrypted, bundled, two processes, in a bucket of the bench's S3 server.

The program is the one on the path, or ``$PITR_BENCH_PGBACKREST``.  Debian 12's 2.45 knows PostgreSQL up
to 15, and keeps the block incremental behind ``beta``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from benchmarks.certificates import HOST
from benchmarks.harness import Usage, run
from benchmarks.s3 import REGION_NAME
from benchmarks.side import Place
from pitr.postgres.server_user import hand_over

NOT_INSTALLED = "not installed: apt-get install pgbackrest"
# What it takes for compress-type=zst when nothing is said.
DEFAULT_LEVEL = 3
NEWEST_MAJOR = 15
_STANZA = "bench"
# As much as our own feeder keeps ready.
_QUEUE = "256MiB"
_BETA_UNTIL = (2, 46)


def program() -> str | None:
    """Return where the program is; None if it is not installed."""
    return shutil.which(os.environ.get("PITR_BENCH_PGBACKREST", "pgbackrest"))


def missing() -> str | None:
    """Return what to do to have it, or None."""
    return NOT_INSTALLED if program() is None else None


class PgBackRest:
    """One repository with one stanza.  May be made where the program is missing, and not run then."""

    def __init__(
        self, place: Place, name: str, *, level: int, is_block: bool = False, is_async: bool = False
    ) -> None:
        self._place = place
        self._config = place.work / f"{name}.conf"
        self._bucket = place.server.make_bucket(name)
        self._program = program()
        if self._program is None:
            return
        self._folder = folder = place.work / name
        for part in ("log", "lock", "spool"):
            (folder / part).mkdir(parents=True)
        server, instance = place.server, place.cluster.instance
        settings = {
            "repo1-type": "s3",
            "repo1-path": "/repo",
            "repo1-s3-bucket": self._bucket,
            "repo1-s3-endpoint": HOST,
            "repo1-s3-region": REGION_NAME,
            "repo1-s3-uri-style": "path",
            "repo1-s3-key": server.access_key,
            "repo1-s3-key-secret": server.secret_key,
            "repo1-storage-port": str(server.port),
            "repo1-storage-ca-file": str(server.certificates.ca_file),
            "repo1-cipher-type": "aes-256-cbc",
            "repo1-cipher-pass": server.secret_key,
            "repo1-bundle": "y",
            "repo1-retention-full": "9999999",
            "compress-type": "zst",
            "compress-level": str(level),
            "process-max": "2",
            "start-fast": "y",
            # WAL is left out, as with all others; and nothing is deleted here.
            "archive-check": "n",
            "archive-mode-check": "n",
            "expire-auto": "n",
            "log-path": str(folder / "log"),
            "lock-path": str(folder / "lock"),
            "spool-path": str(folder / "spool"),
            "log-level-console": "off",
        }
        if is_async:
            settings["archive-async"] = "y"
        if is_block:
            settings["repo1-block"] = "y"
            if _version(self._program) < _BETA_UNTIL:
                settings["beta"] = "y"
        lines = [f"{key}={value}" for key, value in settings.items()]
        lines += [f"[{_STANZA}]", f"pg1-path={instance.data_dir}", f"pg1-port={instance.port}"]
        lines += [f"pg1-socket-path={instance.socket_dir}", "pg1-user=postgres"]
        self._config.touch(mode=0o600)
        self._config.write_text("[global]\n" + "\n".join(lines) + "\n")
        run(self._words("stanza-create"))

    def back_up(self, kind: str) -> Usage:
        """Take a backup of type ``full`` or ``incr``, the latter on the last one."""
        return self._place.measure(self._bucket, lambda: run(self._words(f"--type={kind}", "backup")))

    def archive_command(self) -> str:
        """Return what PostgreSQL's setting would be."""
        return shlex.join(self._words("archive-push")) + " %p"

    def restore(self, into: Path) -> Usage:
        """Restore the newest backup into a new directory: the files, and no recovery settings."""
        into.mkdir(mode=0o700)
        return run(self._words(f"--pg1-path={into}", "--type=none", "restore"))

    def push(self, segment: Path) -> None:
        """Archive one WAL segment."""
        run(self._words("archive-push", str(segment)))

    def hand_over(self) -> None:
        """Let the server's user work with the repository, for ``restore_command``."""
        for path in (self._config, self._folder):
            hand_over(path, self._place.cluster.user)

    def restore_command(self, data: str) -> str:
        """Return the asynchronous ``restore_command`` of the cluster in ``data``."""
        ahead = ["--archive-async", f"--archive-get-queue-max={_QUEUE}"]
        return " ".join([*self._words(f"--pg1-path={data}", *ahead, "archive-get"), "%f", '"%p"'])

    def empty_spool(self) -> None:
        """Forget what was fetched ahead for another recovery."""
        shutil.rmtree(self._folder / "spool", ignore_errors=True)
        (self._folder / "spool").mkdir()
        hand_over(self._folder / "spool", self._place.cluster.user)

    def _words(self, *words: str) -> list[str]:
        assert self._program is not None, NOT_INSTALLED
        return [self._program, f"--config={self._config}", f"--stanza={_STANZA}", *words]


def _version(path: str) -> tuple[int, ...]:
    words = subprocess.run([path, "version"], capture_output=True, text=True, timeout=60, check=True).stdout
    return tuple(int(part) for part in words.split()[-1].split("dev")[0].split("."))
