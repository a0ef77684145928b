"""``pitr`` as people run it, on a benchmark's cluster: three directory regions, quorum 2, its own daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.cluster import BenchCluster
from benchmarks.harness import RunFailed

_TIMEOUT_S = 120.0
_POLL_S = 0.05
_STREAMING = (
    "SELECT coalesce(max(flush_lsn - '0/0'), 0) FROM pg_stat_replication WHERE application_name LIKE 'pitr%'"
)


class BenchSite:
    """A repository below ``work`` and the daemon that writes it.  Use it as a context manager."""

    def __init__(self, cluster: BenchCluster, work: Path) -> None:
        self.cluster = cluster
        self.identity = work / "identity.toml"
        self.urls = [f"file://{work}/region-{name}" for name in ("eu", "us", "ap")]
        self._config = work / "pitr" / "pitr.toml"
        self._daemon: subprocess.Popen[bytes] | None = None
        words: list[str | Path] = ["init", "--pg", cluster.dsn, "--quorum", "2", "--non-interactive"]
        words += ["--dir", self._config.parent, "--identity-out", self.identity, "--metrics", "off"]
        for name, url in zip(("eu", "us", "ap"), self.urls, strict=True):
            words += ["--region", f"{name}={url}"]
        self.run(*words, "--create-directories")
        # Only what a figure asks for: no backup begins by itself.
        text = self._config.read_text().replace('full_every = "24h"', 'full_every = "never"')
        self._config.write_text(text)

    def words(self, *words: str | Path) -> list[str | Path]:
        return [sys.executable, "-m", "cli.main", *words]

    def run(self, *words: str | Path) -> None:
        """Run a command to its end.  Raises RunFailed with its last words."""
        done = subprocess.run(self.words(*words), capture_output=True, timeout=_TIMEOUT_S * 10, check=False)
        if done.returncode != 0:
            raise RunFailed(f"pitr {words[0]} ended with {done.returncode}: {done.stderr.decode()[-800:]}")

    def run_configured(self, *words: str | Path) -> None:
        self.run("-c", self._config, *words)

    def __enter__(self) -> BenchSite:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._daemon is not None, "the daemon was not started"
        return self._daemon.pid

    def start(self) -> None:
        """Start the daemon; return when it streams."""
        with (self._config.parent / "daemon.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self.words("-c", self._config, "daemon"), stdout=log, stderr=log, env=dict(os.environ)
            )
        self.wait(lambda: self.durable() > 0)

    def stop(self) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait(timeout=_TIMEOUT_S)

    def durable(self) -> int:
        """Return the WAL position that the server was told to be at quorum, as an offset; 0 before any."""
        return int(str(self.cluster.execute(_STREAMING)[0][0]))

    def wait(self, is_so: object, timeout_s: float = _TIMEOUT_S) -> None:
        """Return once ``is_so()`` is true.  Raises RunFailed after ``timeout_s`` or when the daemon ended."""
        assert callable(is_so)
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline or (self._daemon is not None and self._daemon.poll() is not None):
                log = (self._config.parent / "daemon.log").read_text(errors="replace")
                raise RunFailed(f"the daemon does not get there: {log[-800:]}")
            time.sleep(_POLL_S)
