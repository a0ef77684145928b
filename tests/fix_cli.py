"""``pitr`` as people run it: real processes, a configuration, three regions, a real server behind them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_restore import examine_running
from fix_s3 import S3Server

from pitr.layout import parse_wal_key
from pitr.postgres.instance import Instance
from pitr.wal.lsn import LSN

CHECKOUT = Path(__file__).resolve().parents[1]
COMMAND_TIMEOUT_S = 120.0
DAEMON_TIMEOUT_S = 60.0
REGION_NAMES = ("eu", "us", "ap")
_POLL_S = 0.05


def wait_until(
    is_so: Callable[[], object], what: str, *, timeout_s: float = DAEMON_TIMEOUT_S, every_s: float = _POLL_S
) -> None:
    """Return once ``is_so`` gives something true; fail with ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() >= deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(every_s)


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    words: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object of a command that ran with ``--json``."""
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found

    @property
    def data(self) -> dict[str, Any]:
        found = self.object["data"]
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> dict[str, Any]:
        found = self.object["error"]
        assert isinstance(found, dict), "the command did not fail"
        return found

    def __str__(self) -> str:
        return f"pitr {' '.join(self.words)}\nexit {self.exit_code}\n{self.stdout}\n{self.stderr}"


@dataclass(slots=True)
class PitrProgram:
    """Runs ``pitr`` in a folder, with nobody's configuration but what the test names."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def words(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "cli.main", *map(str, words)]

    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PITR_", "AWS_"))}
        if "PITR_PG_BIN" in os.environ:
            kept["PITR_PG_BIN"] = os.environ["PITR_PG_BIN"]
        # No ~/.config/pitr and no ~/.pgpass of the person who runs the tests.
        return {
            **kept,
            "HOME": str(self.folder),
            "PYTHONPATH": str(CHECKOUT),
            **self.environment,
        }

    def __call__(
        self, *words: object, exit_code: int | None = 0, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> Done:
        """Run a command to its end; fail unless it has ``exit_code`` (None: any)."""
        ended = subprocess.run(
            self.words(*words),
            cwd=self.folder,
            env=self.env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        done = Done(tuple(map(str, words)), ended.returncode, ended.stdout, ended.stderr)
        assert "Traceback" not in done.stderr, str(done)
        assert exit_code is None or done.exit_code == exit_code, str(done)
        return done

    def begin(self, *words: object, log: Path, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a command whose output goes to ``log``; the caller ends it.  ``prefix`` must exec it."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [*prefix, *self.words(*words)],
                cwd=self.folder,
                env=self.env(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


@dataclass(slots=True)
class DaemonProcess:
    """``pitr daemon`` as a process that can be stopped, killed and started again."""

    program: PitrProgram
    config: Path
    log: Path
    prefix: Sequence[str] = ()
    _process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start it first"
        return self._process.pid

    @property
    def memory_bytes(self) -> int:
        """The memory that the process has in use now."""
        return self._memory_bytes("VmRSS")

    @property
    def memory_bytes_most(self) -> int:
        """The most memory that the process had in use since it began."""
        return self._memory_bytes("VmHWM")

    def _memory_bytes(self, figure: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{figure}:\s+(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def start(self) -> None:
        assert not self.is_running
        self._process = self.program.begin("-c", self.config, "daemon", log=self.log, prefix=self.prefix)

    def kill(self) -> None:
        """End it as a power cut does.  May be repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def stop(self, *, timeout_s: float = DAEMON_TIMEOUT_S) -> int:
        """Ask it to end by SIGTERM; return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def check_alive(self) -> None:
        assert self.is_running, f"the daemon ended:\n{self.tail()}"

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-8000:] if self.log.exists() else ""


@dataclass(slots=True)
class Region:
    """A region that is a directory: it can be taken away, come back, or be destroyed."""

    name: str
    path: Path

    @property
    def url(self) -> str:
        return self.path.as_uri()

    @property
    def _away(self) -> Path:
        return self.path.with_name(f"{self.path.name}.away")

    def take_away(self) -> None:
        """As an unmounted disk: the path is gone, the objects are not."""
        self.path.rename(self._away)

    def give_back(self) -> None:
        self._away.rename(self.path)

    def destroy(self) -> None:
        shutil.rmtree(self.path)

    def objects(self, prefix: str = "") -> dict[str, Path]:
        """Return the files of the objects whose keys begin with ``prefix``, by key in order."""
        top = self.path / "objects"
        found = {
            str(path.relative_to(top)): path
            for path in sorted(top.rglob("*"))
            if path.is_file() and str(path.relative_to(top)).startswith(prefix)
        }
        return dict(sorted(found.items()))

    def wal_segment(self, name: str) -> dict[str, Path]:
        """Return every object, piece or whole, that holds WAL of the segment ``name``."""
        return {
            key: path for key, path in self.objects("wal/").items() if str(parse_wal_key(key).segment) == name
        }


@dataclass(slots=True)
class Site:
    """A server, its ``pitr`` and the regions: what one test breaks."""

    server: RunningPostgres
    folder: Path
    program: PitrProgram
    regions: tuple[Region, ...]
    daemon: DaemonProcess
    quorum: int = 2
    urls: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    started: list[Path] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "pitr" / "pitr.toml"

    @property
    def identity(self) -> Path:
        """The recovery key, where only a restore looks for it."""
        return self.folder / "vault" / "identity.toml"

    @property
    def state_dir(self) -> Path:
        return self.folder / "pitr" / "state"

    def init(self, *more: object, exit_code: int | None = 0) -> Done:
        """Make the repository, the keys, the slot and the configuration."""
        self.identity.parent.mkdir(exist_ok=True)
        words: list[object] = ["init", "--pg", self.server.dsn, "--quorum", self.quorum, "--non-interactive"]
        words += ["--dir", self.config.parent, "--identity-out", self.identity, "--metrics", "off"]
        for name, url in zip(REGION_NAMES, self.region_urls, strict=False):
            words += ["--region", f"{name}={url}"]
        if any(url.startswith("file:") for url in self.region_urls):
            words.append("--create-directories")
        return self.program(*words, *more, exit_code=exit_code)

    def set_option(self, line: str, new: str) -> None:
        """Replace a line of the configuration, which must be there once."""
        text = self.config.read_text()
        assert text.count(line) == 1, f"{line!r} is {text.count(line)} times in\n{text}"
        self.config.write_text(text.replace(line, new))

    @property
    def region_urls(self) -> tuple[str, ...]:
        return self.urls or tuple(region.url for region in self.regions)

    def __call__(self, *words: object, exit_code: int | None = 0) -> Done:
        """Run a command with the site's configuration."""
        return self.program("-c", self.config, *words, exit_code=exit_code)

    # -- what the server says of us

    def start_server(self) -> None:
        """Start the server again, after a stop or a kill, as it was."""
        self.server.start(self.settings)

    def flush_lsn(self) -> LSN | None:
        """What the daemon told the server to be at quorum; None while it does not stream."""
        rows = self.server.execute(
            "SELECT flush_lsn FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
            " WHERE s.slot_name = 'pitr' AND r.state = 'streaming'"
        )
        return LSN.parse(str(rows[0][0])) if rows and rows[0][0] is not None else None

    def restart_lsn(self) -> LSN:
        """Where the WAL begins that the slot keeps."""
        found = self.server.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'pitr'")
        return LSN.parse(str(found))

    def insert_lsn(self) -> LSN:
        """Where the server has written its WAL to; all of it is flushed when no transaction is open."""
        return LSN.parse(str(self.server.value("SELECT pg_current_wal_flush_lsn()")))

    def wait_durable(self, lsn: LSN | None = None, *, timeout_s: float = DAEMON_TIMEOUT_S) -> LSN:
        """Return once WAL up to ``lsn`` (None: all there is now) is acknowledged; return that end."""
        wanted = lsn if lsn is not None else self.insert_lsn()

        def is_durable() -> bool:
            self.daemon.check_alive()
            end = self.flush_lsn()
            return end is not None and end >= wanted

        wait_until(is_durable, f"WAL is at quorum up to {wanted}; {self.daemon.tail()}", timeout_s=timeout_s)
        return wanted

    def backups(self) -> list[str]:
        """Return the base backups that some region has the manifest of."""
        if self.urls:
            return [one["backup"] for one in self("backups", "list", "--json").data["backups"]]
        found: set[str] = set()
        for region in self.regions:
            if region.path.exists():
                found |= region.objects("manifests/").keys()
        return sorted(found)

    def start_daemon(self, *, backups: int = 1) -> None:
        """Start the daemon; return when it streams, and when there are ``backups`` base backups."""
        self.daemon.start()

        def is_ready() -> bool:
            self.daemon.check_alive()
            return self.flush_lsn() is not None and len(self.backups()) >= backups

        wait_until(is_ready, f"the daemon streams and {backups} backups are there\n{self.daemon.tail()}")

    # -- restores, as on a bare machine: regions and identity, no configuration, no catalogue

    def restore_words(
        self, target: object, into: Path, *more: object, regions: Sequence[Region | str] | None = None
    ) -> list[object]:
        """Return the words of a restore from all regions, or these, each a URL if it is no directory."""
        chosen: Sequence[Region | str] = self.region_urls if regions is None else regions
        urls = [one if isinstance(one, str) else one.url for one in chosen]
        words: list[object] = ["restore", "--identity", self.identity, "--to", target, "--into", into]
        for url in urls:
            words += ["--from", url]
        return [*words, "--yes", "--json", *more]

    def restore(
        self,
        target: object,
        into: Path,
        *more: object,
        regions: Sequence[Region | str] | None = None,
        exit_code: int = 0,
    ) -> Done:
        """Run ``pitr restore`` with URLs and the identity alone."""
        if "--start" in more:
            self.started.append(into)
        return self.program(
            *self.restore_words(target, into, *more, regions=regions), exit_code=exit_code, timeout_s=180
        )

    def examine(self, into: Path, *only: str) -> None:
        """Let PostgreSQL's own tools judge a restored cluster that runs; it is stopped in between."""
        pid_file = (into / "postmaster.pid").read_text().splitlines()
        own = self.server.instance
        examine_running(
            Instance(
                own.installation,
                into,
                user=own.user,
                socket_dir=Path(pid_file[4]),
                port=int(pid_file[3]),
                log_path=into.parent / "judge.log",
            ),
            *only,
        )


def on_small_disk(folder: Path, size_bytes: int) -> list[str]:
    """Return the words that run a command that has a small disk of its own at ``folder``."""
    alone = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    script = f'mount -t tmpfs -o size={size_bytes} none "$0" && exec "$@"'
    return [*alone, "sh", "-c", script, str(folder)]


def _wait_gone(pid_file: Path) -> None:
    wait_until(lambda: not pid_file.exists(), f"{pid_file.parent} has stopped", timeout_s=30)


def end_servers(directories: list[Path]) -> None:
    """End the servers that restores have left running, however the test ended."""
    for directory in directories:
        pid_file = directory / "postmaster.pid"
        if pid_file.exists():
            pid = int(pid_file.read_text().split("\n", 1)[0])
            try:
                os.kill(pid, signal.SIGQUIT)
            except ProcessLookupError:
                continue
            _wait_gone(pid_file)


MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(postgres_factory: PostgresFactory, server_tmp_path: Path) -> Iterator[MakeSite]:
    """Return a callable that makes a server with three directory regions and runs ``pitr init``.

    ``make_site(major=17, settings={…}, s3=None, far=None, locked=None)``; with an ``S3Server`` the regions
    are three buckets, that of the region ``locked`` with Object Lock, or, if it is ``far``, the last one is.
    """
    with _Sites(postgres_factory, server_tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def module_make_site(module_postgres_factory: PostgresFactory) -> Iterator[MakeSite]:
    """Return the same for a site that the tests of one module share."""
    folder = Path(tempfile.mkdtemp(prefix="pitr-"))
    folder.chmod(0o755)
    with _Sites(module_postgres_factory, folder) as make:
        yield make
    shutil.rmtree(folder)


class _Sites:
    """The sites of one fixture: makes them, and ends their daemons and what they restored."""

    def __init__(self, factory: PostgresFactory, folder: Path) -> None:
        self._factory = factory
        self._folder = folder
        self._made: list[Site] = []

    def __enter__(self) -> MakeSite:
        return self._make

    def __exit__(self, *_: object) -> None:
        for site in self._made:
            site.daemon.kill()
            end_servers(site.started)

    def _make(
        self,
        major: int = 17,
        settings: Mapping[str, str] | None = None,
        s3: S3Server | None = None,
        far: S3Server | None = None,
        quorum: int = 2,
        init: bool = True,
        locked: str | None = None,
    ) -> Site:
        folder = self._folder / f"site{len(self._made) + 1}"
        folder.mkdir()
        all_settings = {"track_commit_timestamp": "on", **(settings or {})}
        server = self._factory(major, all_settings)
        program = PitrProgram(folder, _s3_environment(s3 or far))
        regions = tuple(Region(name, folder / "regions" / name) for name in REGION_NAMES)
        urls: tuple[str, ...] = ()
        if s3 is not None:
            urls = tuple(
                _bucket_url(s3, f"{folder.parent.name}-{name}".lower(), is_locked=name == locked)
                for name in REGION_NAMES
            )
        if far is not None:
            last = _bucket_url(far, f"{folder.parent.name}-{REGION_NAMES[-1]}".lower())
            urls = (*(region.url for region in regions[:-1]), last)
        config = folder / "pitr" / "pitr.toml"
        daemon = DaemonProcess(program, config, folder / "daemon.log")
        site = Site(server, folder, program, regions, daemon, quorum, urls, all_settings)
        self._made.append(site)
        if init:
            site.init()
        return site


def _s3_environment(s3: S3Server | None) -> dict[str, str]:
    if s3 is None:
        return {}
    return {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}


def _bucket_url(s3: S3Server, name: str, *, is_locked: bool = False) -> str:
    """Make a bucket; one that ``is_locked`` locks everything for a day, and what verifiers put for two."""
    bucket = re.sub(r"[^a-z0-9-]", "-", name)
    s3.make_bucket(bucket, object_lock=is_locked, default_lock_days=1 if is_locked else None)
    lock = "&lock=compliance&lock_days=2" if is_locked else ""
    return f"s3://{bucket}/prod?endpoint={s3.endpoint}&region={s3.region_name}&profile=versitygw{lock}"
