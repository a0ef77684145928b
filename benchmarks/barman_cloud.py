"""The peer barman-cloud: two jobs, in a virtual environment of its own below the user's cache.

Its base backups know no zstd, so it compresses with lz4, which takes less CPU and stores more; and it
leaves encryption to the S3 server.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import venv
from functools import cache
from pathlib import Path

from benchmarks.harness import Usage, run
from benchmarks.side import Place

_REQUIREMENTS = ("barman[cloud]==3.19.1", "lz4")
_INSTALL_TIMEOUT_S = 600.0


def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pitr-bench" / "barman-3.19.1"


@cache
def missing() -> str | None:
    """Install it if it is not there; return what to do to have it if that fails, or None."""
    home, mark = _home(), _home() / ".made"
    if mark.is_file():
        return None
    try:
        venv.create(home, with_pip=True, clear=True)
        words: list[str | Path] = [home / "bin" / "python", "-m", "pip", "install", "--quiet", *_REQUIREMENTS]
        subprocess.run(words, check=True, capture_output=True, timeout=_INSTALL_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as failure:
        print(f"barman-cloud: {failure}", file=sys.stderr)
        return f"not installed: pip install {' '.join(_REQUIREMENTS)} into {home}"
    mark.touch()
    return None


class BarmanCloud:
    """One server name in a bucket of its own."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self._bucket = place.server.make_bucket(name)

    def archive_command(self) -> str:
        """Return what PostgreSQL's setting would be."""
        server = self._place.server
        words = ["env", *(f"{name}={value}" for name, value in server.environment.items())]
        words += [str(_home() / "bin" / "barman-cloud-wal-archive"), "--endpoint-url", server.endpoint]
        words += ["--addressing-style", "path", "--lz4", f"s3://{self._bucket}/barman", "bench"]
        return shlex.join(words) + " %p"

    def full(self) -> Usage:
        """Take a full backup; ``localhost`` needs path-style addresses."""
        instance, server = self._place.cluster.instance, self._place.server
        words: list[str | Path] = [
            _home() / "bin" / "barman-cloud-backup", "--endpoint-url", server.endpoint,
            "--addressing-style", "path", "--lz4", "--jobs", "2", "--immediate-checkpoint",
            "-h", str(instance.socket_dir), "-p", str(instance.port), "-U", "postgres",
            f"s3://{self._bucket}/barman", "bench",
        ]  # fmt: skip
        return self._place.measure(self._bucket, lambda: run(words, env=server.environment))
