"""A real Debezium: its PostgreSQL connector in Kafka Connect's standalone mode, one JVM for all connectors.

Its jars are not Kafka's: they lie in a folder that only ``make test-all`` fills, and the worker loads them as
a plugin, apart from its own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from fix_cli import wait_until
from fix_kafka import JavaProcess, KafkaNode, jar_folder, kafka_jars
from fix_ports import HOST, free_port
from fix_postgres import RunningPostgres
from psycopg.conninfo import conninfo_to_dict

DEBEZIUM_VERSION = "3.6.1.Final"
DEBEZIUM_JARS = (f"io.debezium:debezium-connector-postgres:{DEBEZIUM_VERSION}",)
# As sha256sum prints them: the connector and its driver.  The other jars are common libraries, in the
# versions that it names.
DEBEZIUM_DIGESTS = """
893c73a44dd05b3a102830efb53b2636c63cfdf890860411dcc4969282c9544b  debezium-api-3.6.1.Final.jar
0d4b6335aca11e8ba40aa00d39b23b863ef968e79d47ed7a133b9461f8218405  debezium-config-3.6.1.Final.jar
712d34752f945fb4062354a9faf04424dd3660411137b3bb160b0a68d4a7ee8e  debezium-connect-plugins-3.6.1.Final.jar
365a695d512b085cff2cd12e28e44a7a3e733b43bfb27f3608508d7800e2de45  debezium-connector-common-3.6.1.Final.jar
e7bb97f00f97ec78d7c39b19e2b0797739438433b6acaa0941e18dbc2da0d854  debezium-connector-postgres-3.6.1.Final.jar
7e7e0fb3c3a12b3e8bfe2d42df278ff2a9fab8c58fa12199590e35fdb88b2062  debezium-openlineage-api-3.6.1.Final.jar
9501581790412207cda72b2b57874e0430e2f9e4c5e94a054f7b06e07c112e5f  debezium-util-3.6.1.Final.jar
1981b31d3993c58702783c1cddf10a34e48c1f413d70ff1cb6def0a143484647  postgresql-42.7.11.jar
"""
MAIN = "org.apache.kafka.connect.cli.ConnectStandalone"
CONNECTOR = "io.debezium.connector.postgresql.PostgresConnector"
JSON = "org.apache.kafka.connect.json.JsonConverter"
START_TIMEOUT_S = 600.0


def debezium_jars() -> Path:
    """Return the folder with the connector and what it needs."""
    digests = (line.split() for line in DEBEZIUM_DIGESTS.split("\n") if line)
    return jar_folder(f"debezium-{DEBEZIUM_VERSION}", DEBEZIUM_JARS, {jar: digest for digest, jar in digests})


@dataclass(slots=True)
class DebeziumWorker:
    """Connectors over one server and one broker; after a crash it goes on where its offsets are."""

    folder: Path
    server: RunningPostgres
    node: KafkaNode
    connectors: dict[str, dict[str, str]] = field(default_factory=dict)
    process: JavaProcess = field(init=False)
    _rest: int = 0

    def __post_init__(self) -> None:
        self.process = JavaProcess(self.folder, "debezium")

    def add(self, prefix: str, tables: str, settings: Mapping[str, str]) -> None:
        """Add a connector; it runs once the worker is started.  Topics are ``PREFIX.SCHEMA.TABLE``."""
        reached = conninfo_to_dict(self.server.tcp_dsn)
        self.connectors[prefix] = {
            "name": prefix,
            "connector.class": CONNECTOR,
            "tasks.max": "1",
            "topic.prefix": prefix,
            "plugin.name": "pgoutput",
            "slot.name": prefix,
            "publication.name": prefix,
            "publication.autocreate.mode": "filtered",
            "table.include.list": tables,
            "database.hostname": HOST,
            "database.port": str(reached["port"]),
            "database.user": str(reached["user"]),
            "database.password": str(reached.get("password") or ""),
            "database.dbname": str(reached["dbname"]),
            "topic.creation.default.replication.factor": "1",
            "topic.creation.default.partitions": "1",
            **settings,
        }

    def start(self) -> None:
        """Start it, and return when each connector streams from its slot."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plugins = self.folder / "plugins"
        if not plugins.exists():
            shutil.copytree(debezium_jars(), plugins / "debezium", copy_function=shutil.copyfile)
        self._rest = free_port()
        worker = {
            "bootstrap.servers": self.node.bootstrap,
            "listeners": f"http://{HOST}:{self._rest}",
            "key.converter": JSON,
            "value.converter": JSON,
            "key.converter.schemas.enable": "false",
            "value.converter.schemas.enable": "false",
            "offset.storage.file.filename": str(self.folder / "offsets"),
            # What was published since then comes again after a crash.
            "offset.flush.interval.ms": "5000",
            "plugin.path": str(plugins),
            # A scan of every class takes most of a minute.
            "plugin.discovery": "service_load",
        }
        files = [self._write("worker", worker)]
        files += [self._write(name, config) for name, config in self.connectors.items()]
        self.process.start(MAIN, *files, heap="384m", jars=kafka_jars())
        for name in self.connectors:
            wait_until(
                lambda name=name: self._streams(name),
                f"{name} streams",
                timeout_s=START_TIMEOUT_S,
                every_s=0.5,
            )

    def stop(self) -> None:
        self.process.stop()

    def crash(self) -> None:
        self.process.crash()

    def failures(self) -> list[str]:
        """Return the traces of tasks that failed."""
        return [
            task["trace"]
            for name in self.connectors
            for task in (self._status(name) or {"tasks": []})["tasks"]
            if task["state"] == "FAILED"
        ]

    def _streams(self, name: str) -> bool:
        assert self.process.is_alive, f"the worker ended\n{self.process.tail()}"
        failures = self.failures()
        assert not failures, failures
        tasks = (self._status(name) or {"tasks": []})["tasks"]
        return [task["state"] for task in tasks] == ["RUNNING"] and bool(
            self.server.value(
                "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND active", name
            )
        )

    def _status(self, name: str) -> dict[str, Any] | None:
        try:
            with urlopen(f"http://{HOST}:{self._rest}/connectors/{name}/status", timeout=10) as told:
                found: dict[str, Any] = json.load(told)
        except (URLError, OSError):
            return None  # it does not listen yet, or has not heard of it
        return found

    def _write(self, name: str, config: Mapping[str, str]) -> str:
        path = self.folder / f"{name}.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in config.items()))
        return str(path)


MakeDebezium = Callable[[RunningPostgres, KafkaNode], DebeziumWorker]


@pytest.fixture
def make_debezium() -> Iterator[MakeDebezium]:
    """Return a callable that makes a worker, to be given connectors and started."""
    made: list[DebeziumWorker] = []
    top = Path(tempfile.mkdtemp(prefix="pd-"))

    def make(server: RunningPostgres, node: KafkaNode) -> DebeziumWorker:
        made.append(DebeziumWorker(top / str(len(made)), server, node))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.crash()
        shutil.rmtree(top, ignore_errors=True)
