"""The restored server as the checks see it, and PostgreSQL's own programs run on it."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pitr.errors import PitrError
from pitr.postgres.instance import Instance
from pitr.postgres.scratch_session import ScratchSession, closed_databases_of, databases_of
from pitr.postgres.server_user import as_user

# What a program printed and what is kept of it; the digest is of all.
_SHOWN_CHARS: Final = 20_000
_LINE_BYTES_MAX: Final = 1 << 20


class ToolFailed(PitrError):
    """A program of PostgreSQL's is missing, or did not end in time."""


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A program that ended; ``output`` and ``said`` are the ends of its two streams.

    ``sha256`` and ``size_bytes`` are of all that it wrote to the first.
    """

    command: str
    exit_code: int
    output: str
    said: str
    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ScratchServer:
    """The scratch server; ``left_s`` says how much time is left for all that is to come."""

    instance: Instance
    superuser: str
    left_s: Callable[[], float]
    statement_timeout_s: float = 3600.0

    @property
    def data_dir(self) -> Path:
        return self.instance.data_dir

    @property
    def major(self) -> int:
        return self.instance.installation.major

    @property
    def version(self) -> str:
        return self.instance.installation.version

    @property
    def dsn(self) -> str:
        """Return the conninfo of the superuser."""
        return self.instance.dsn_as(self.superuser)

    def session(
        self,
        database: str = "template1",
        *,
        timeout_s: float | None = None,
        search_path: str = "pg_catalog",
    ) -> ScratchSession:
        """Open a read-only session.  Raises QueryFailed."""
        wanted = min(timeout_s or self.statement_timeout_s, max(1.0, self.left_s()))
        return ScratchSession(
            self.instance.dsn,
            superuser=self.superuser,
            database=database,
            timeout_s=wanted,
            search_path=search_path,
        )

    def databases(self) -> list[str]:
        """Return the databases that let anybody in.  Raises QueryFailed."""
        return databases_of(self.instance.dsn, superuser=self.superuser, timeout_s=60.0)

    def closed_databases(self) -> list[tuple[str, str]]:
        """Return the databases that no check of each database looks into, and why.  Raises QueryFailed."""
        return closed_databases_of(self.instance.dsn, superuser=self.superuser, timeout_s=60.0)

    @property
    def connection_words(self) -> list[str]:
        """Return the options with which PostgreSQL's clients reach it."""
        return ["-h", str(self.instance.socket_dir), "-p", str(self.instance.port), "-U", self.superuser]

    def run_tool(self, name: str, *words: str, drop: bytes | None = None) -> ToolRun:
        """Run one of the installation's programs as the server's user.  Raises ToolFailed.

        What it prints goes into a file first: a schema may be larger than memory.  ``drop``: lines that
        match are not counted into the digest.
        """
        command = [str(self.instance.installation.tool(name)), *words]
        prefix, options = as_user(self.instance.user)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said:
            try:
                done = subprocess.run(
                    [*prefix, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=said,
                    timeout=max(1.0, self.left_s()),
                    check=False,
                    cwd="/",
                    env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGAPPNAME": "pitr verify", "TZ": "UTC"},
                    **options,
                )
            except (OSError, subprocess.TimeoutExpired) as cause:
                raise ToolFailed(f"{name} did not run to its end", detail=str(cause)[:500]) from cause
            digest, size_bytes = _digest(output, drop)
            return ToolRun(
                _command_text(name, words),
                done.returncode,
                _tail(output),
                _tail(said),
                digest,
                size_bytes,
            )


def _digest(output: IO[bytes], drop: bytes | None) -> tuple[bytes, int]:
    digest = hashlib.sha256()
    size_bytes = 0
    output.seek(0)
    while line := output.readline(_LINE_BYTES_MAX):
        if drop is None or re.match(drop, line) is None:
            digest.update(line)
            size_bytes += len(line)
    return digest.digest(), size_bytes


def _tail(output: IO[bytes]) -> str:
    end = output.seek(0, 2)
    output.seek(max(0, end - 4 * _SHOWN_CHARS))
    return output.read().decode("utf-8", "replace").strip()[-_SHOWN_CHARS:]


def _command_text(name: str, words: tuple[str, ...]) -> str:
    """Return the command without what differs by place, so that its digest can be compared."""
    shown = [re.sub(r"^/.*", "PATH", word) for word in words]
    return shlex.join([name, *shown])
