"""Our side of a comparison: backups as the daemon takes them, in one process that goes on (``ours``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import RunFailed, Usage
from benchmarks.s3 import S3Server
from benchmarks.side import Place

# What boto3 reads; the authority is in the region's URL, and in no variable.
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def credentials(server: S3Server) -> dict[str, str]:
    """Return the variables that name the key."""
    return {key: server.environment[key] for key in _CREDENTIALS}


class OwnBackups:
    """A repository in one bucket, and the process that writes it.  Use it as a context manager.

    As in the daemon, which takes backups as long as it lives, a start is paid once: ``start_cpu_s``.
    """

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self._bucket = place.server.make_bucket(name)
        environment = credentials(place.server)
        words: list[str | Path] = [sys.executable, "-m", "benchmarks.ours", place.cluster.dsn]
        words += [place.server.url(self._bucket), place.work / name]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.start_cpu_s = self._answer()["cpu_s"]
        self.size_bytes = 0

    def __enter__(self) -> OwnBackups:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def back_up(self, kind: str) -> Usage:
        """Take a backup of type ``full`` or ``incr``, the latter on the last one."""
        return self._place.measure(self._bucket, lambda: self._take(kind))

    def _take(self, kind: str) -> Usage:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind}\n")
        self._process.stdin.flush()
        answer = self._answer()
        # What the last backup would restore.
        self.size_bytes = int(answer["size_bytes"])
        return Usage(answer["wall_s"], answer["cpu_s"], int(answer["peak_bytes"]))

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunFailed(f"benchmarks.ours ended with {self._process.wait(60)}")
        answer: dict[str, float] = json.loads(line)
        return answer
