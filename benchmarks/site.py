"""``pitr`` as people run it, on a benchmark's cluster: its own daemon, and a quorum of most regions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cluster import BenchCluster
from benchmarks.harness import RunFailed
from cli.config_template import without_schedule

_TIMEOUT_S = 120.0
_POLL_S = 0.05
_FLUSHED = (
    "SELECT coalesce(max(flush_lsn - '0/0'), 0) FROM pg_stat_replication JOIN pg_replication_slots"
    " ON active_pid = pid WHERE slot_name = '{slot}'"
)
_REGIONS = ("eu", "us", "ap")


class BenchSite:
    """A repository below ``work`` and the daemon that writes it.  Use it as a context manager."""

    def __init__(
        self,
        cluster: BenchCluster,
        work: Path,
        *,
        slot: str = "pitr",
        urls: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Make the repository in three directories, or at ``urls``, whose credentials ``environment`` has."""
        self.cluster = cluster
        self._slot = slot
        self._environment = {**os.environ, **(environment or {})}
        self.identity = work / "identity.toml"
        self._regions = [work / f"region-{name}" for name in _REGIONS]
        self.urls = [f"file://{region}" for region in self._regions] if urls is None else list(urls)
        self._config = work / "pitr" / "pitr.toml"
        self._daemon: subprocess.Popen[bytes] | None = None
        words: list[str | Path] = ["init", "--pg", cluster.dsn, "--slot", slot]
        words += ["--quorum", str(len(self.urls) // 2 + 1)]
        words += ["--non-interactive"]
        words += ["--dir", self._config.parent, "--identity-out", self.identity, "--metrics", "off"]
        for name, url in zip(_REGIONS, self.urls, strict=False):
            words += ["--region", f"{name}={url}"]
        self.run(*words, "--create-directories")
        # Only what a figure asks for: no backup begins by itself.
        self._config.write_text(without_schedule(self._config.read_text()))

    @property
    def config(self) -> Path:
        """Its configuration's file."""
        return self._config

    @property
    def state_dir(self) -> Path:
        return self._config.parent / "state"

    def edit_config(self, old: str, new: str) -> None:
        """Change a setting before the daemon is started."""
        text = self._config.read_text()
        assert old in text, f"the configuration lacks {old}"
        self._config.write_text(text.replace(old, new))

    def words(self, *words: str | Path) -> list[str | Path]:
        return [sys.executable, "-m", "cli.main", *words]

    def run(self, *words: str | Path) -> None:
        """Run a command to its end.  Raises RunFailed with its last words."""
        done = subprocess.run(
            self.words(*words),
            capture_output=True,
            timeout=_TIMEOUT_S * 10,
            check=False,
            env=self._environment,
        )
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
            # A session of its own: the end of a shell wakes what is held in its job.
            self._daemon = subprocess.Popen(
                self.words("-c", self._config, "daemon"),
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self.wait(lambda: self.durable() > 0)

    def stop(self) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGCONT)
            self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait(timeout=_TIMEOUT_S)

    def pause(self) -> None:
        """Hold the daemon where it is; its slot keeps the WAL that comes meanwhile."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGCONT)

    def is_settled(self, end: int) -> bool:
        """Say whether every region has all WAL before ``end``, as pieces and as segments, and the spool none.

        Segments of 16 MiB on timeline 1, as the cluster has them.
        """
        if self.durable() < end:
            return False
        last, wal = _segment_name((end >> 24) - 1), [region / "objects" / "wal" for region in self._regions]
        pieces = [sorted(path.name for path in folder.rglob("p-*")) for folder in wal]
        segments = [{path.parent.name: None for path in sorted(folder.rglob("s-*"))} for folder in wal]
        is_equal = pieces.count(pieces[0]) == segments.count(segments[0]) == len(wal)
        # What a segment holds was put in order, so with the last one all before it were.
        return is_equal and last in segments[0] and not any(self._config.parent.rglob("spool/[0-9]*"))

    def durable(self) -> int:
        """Return the WAL position that the server was told to be at quorum, as an offset; 0 before any."""
        return int(str(self.cluster.execute(_FLUSHED.format(slot=self._slot))[0][0]))

    def wait(self, is_so: object, timeout_s: float = _TIMEOUT_S) -> None:
        """Return once ``is_so()`` is true.  Raises RunFailed after ``timeout_s`` or when the daemon ended."""
        assert callable(is_so)
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline or (self._daemon is not None and self._daemon.poll() is not None):
                log = (self._config.parent / "daemon.log").read_text(errors="replace")
                raise RunFailed(f"the daemon does not get there: {log[-800:]}")
            time.sleep(_POLL_S)


def _segment_name(number: int) -> str:
    return f"{1:08X}{number >> 8:08X}{number & 0xFF:08X}"
