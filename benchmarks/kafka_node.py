"""A real Kafka broker for tests and figures: one process, broker and controller in one (KRaft).

Its jars and a data directory that was formatted are kept below the user's cache; see ``java_process``.
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.java_process import (
    INSTALL_TIMEOUT_S,
    JVM_OPTIONS,
    LOGGING,
    START_TIMEOUT_S,
    JavaProcess,
    jar_folder,
    java,
    made_once,
)

CALL_TIMEOUT_S = 30.0
HOST = "127.0.0.1"
KAFKA_VERSION = "4.1.1"
KAFKA_JARS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}",
    f"org.apache.kafka:connect-mirror:{KAFKA_VERSION}",
    # Kafka brings the interface of its logging, and nothing that writes it.
    "org.slf4j:slf4j-simple:1.7.36",
)
_ASK_BROKERS = """
import sys
from confluent_kafka.admin import AdminClient
admin = AdminClient({"bootstrap.servers": sys.argv[1], "log_level": 0})
sys.exit(not admin.list_topics(timeout=2).brokers)
"""


def kafka_jars() -> Path:
    """Return the folder with Kafka, Connect and MirrorMaker 2."""
    return jar_folder(f"kafka-{KAFKA_VERSION}", KAFKA_JARS)


def _kafka_id() -> str:
    """Return a new id as Kafka writes them: a UUID in URL-safe base64."""
    # One that begins with "-" would be taken for an option.
    return "K" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _formatted() -> Path:
    """Return a formatted data directory; to format costs a JVM, so it is done once on a machine."""

    def make(home: Path) -> None:
        config, data = home / "server.properties", home / "data"
        lines = ["process.roles=broker,controller", "node.id=1", "controller.quorum.voters=1@localhost:9093"]
        lines += ["listeners=CONTROLLER://localhost:9093,PLAINTEXT://localhost:9092", f"log.dirs={data}"]
        config.write_text("\n".join([*lines, "controller.listener.names=CONTROLLER"]) + "\n")
        command = [java(), "-Xmx96m", *JVM_OPTIONS, *LOGGING, "-cp", str(kafka_jars() / "*")]
        words = ["kafka.tools.StorageTool", "format", "-t", _kafka_id(), "-c", str(config)]
        told = subprocess.run([*command, *words], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        assert told.returncode == 0, told.stdout + told.stderr
        for made in data.iterdir():
            made.rename(home / made.name)
        data.rmdir()

    return made_once(f"kafka-{KAFKA_VERSION}-formatted", make)


def _free_ports() -> tuple[int, int]:
    """Return two ports that are free, held open until both are known."""
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind((HOST, 0))
        return first.getsockname()[1], second.getsockname()[1]


def _wait_until(is_so: Callable[[], object], what: str, *, timeout_s: float, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        time.sleep(every_s)


# -- processes


@dataclass(slots=True)
class KafkaNode:
    """One broker with its data below ``folder``; a stopped one starts again as itself, on its port."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    heap: str = "256m"
    port: int = 0
    cluster_id: str = ""
    process: JavaProcess = field(init=False)
    _controller_port: int = 0
    _made: int = 0

    def __post_init__(self) -> None:
        self.process = JavaProcess(self.folder, "kafka")

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self) -> KafkaNode:
        """Start it and return when it answers."""
        jars = kafka_jars()
        config = self.folder / "server.properties"
        if not self.port:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.port, self._controller_port = _free_ports()
            self.cluster_id = _kafka_id()
            config.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
            self._format()
        self.process.start("kafka.Kafka", str(config), heap=self.heap, jars=jars)

        def answers() -> bool:
            assert self.process.is_alive, f"the broker ended\n{self.process.tail()}"
            return self._listens() and self._answers()

        _wait_until(answers, f"a broker\n{self.process.tail()}", timeout_s=START_TIMEOUT_S, every_s=0.2)
        return self

    def _listens(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=2).close()
        except OSError:
            return False
        return True

    def _answers(self) -> bool:
        """Ask in a process of its own: librdkafka 2.16 ended one, by SIGABRT, while its broker started."""
        words = [sys.executable, "-c", _ASK_BROKERS, self.bootstrap]
        return subprocess.run(words, capture_output=True, timeout=CALL_TIMEOUT_S, check=False).returncode == 0

    def stop(self) -> None:
        self.process.stop()

    def crash(self) -> None:
        self.process.crash()

    # -- a plain client of it

    def admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def producer(self, **settings: object) -> Any:
        from confluent_kafka import Producer

        return Producer({"bootstrap.servers": self.bootstrap, "log_level": 0, "acks": "all", **settings})

    def consumer(self, group: str, **settings: object) -> Any:
        from confluent_kafka import Consumer

        base = {"bootstrap.servers": self.bootstrap, "log_level": 0, "group.id": group}
        return Consumer({**base, "auto.offset.reset": "earliest", "enable.auto.commit": False, **settings})

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> str:
        """Make a topic; settings are its own, with ``_`` for ``.``: ``retention_ms="1000"``."""
        from confluent_kafka.admin import NewTopic

        own = {key.replace("_", "."): value for key, value in config.items()}
        admin = self.admin()
        made = admin.create_topics([NewTopic(name, partitions, 1, config=own)])
        made[name].result(CALL_TIMEOUT_S)
        _wait_until(
            lambda: len(admin.list_topics(name, timeout=5).topics[name].partitions) == partitions,
            f"topic {name}",
            timeout_s=CALL_TIMEOUT_S,
        )
        _wait_until(lambda: self._has_leaders(admin, name, partitions), f"{name} leads", timeout_s=60)
        return name

    def _has_leaders(self, admin: Any, name: str, partitions: int) -> bool:
        """A topic is told of before its partitions answer."""
        from confluent_kafka import TopicPartition
        from confluent_kafka.admin import OffsetSpec

        asked = {TopicPartition(name, number): OffsetSpec.latest() for number in range(partitions)}
        try:
            return all(one.result(CALL_TIMEOUT_S).offset >= 0 for one in admin.list_offsets(asked).values())
        except self._errors():
            return False

    def new_topic(self, partitions: int = 1, **config: str) -> str:
        """Make a topic with a name that no other has."""
        self._made += 1
        return self.create_topic(f"t{self._made}-{uuid.uuid4().hex[:6]}", partitions, **config)

    def delete_topic(self, name: str) -> None:
        admin = self.admin()
        admin.delete_topics([name])[name].result(CALL_TIMEOUT_S)
        _wait_until(lambda: name not in admin.list_topics(timeout=5).topics, f"{name} is gone", timeout_s=30)

    def delete_records(self, topic: str, before: int, partition: int = 0) -> None:
        """Delete what lies before an offset."""
        from confluent_kafka import TopicPartition

        at = TopicPartition(topic, partition, before)
        admin = self.admin()  # it must live until the answer is there
        for future in admin.delete_records([at]).values():
            future.result(CALL_TIMEOUT_S)

    def produce(self, topic: str, values: Iterable[bytes], partition: int = 0, **parts: Any) -> None:
        """Produce values in order and wait for all; ``parts`` as of confluent-kafka's ``produce``."""
        producer = self.producer(**{"enable.idempotence": True})
        for value in values:
            producer.produce(topic, value, partition=partition, **parts)
            producer.poll(0)
        assert producer.flush(CALL_TIMEOUT_S) == 0

    def _format(self) -> None:
        """Make the data directory: a copy of one that was formatted once, with ids of its own."""
        data = self.folder / "data"
        shutil.copytree(_formatted(), data, ignore=shutil.ignore_patterns(".made", "*.properties"))
        ids = {"cluster.id": self.cluster_id, "node.id": "1", "directory.id": _kafka_id()}
        lines = [f"{name}={value}" for name, value in {"version": "1", **ids}.items()]
        (data / "meta.properties").write_text("\n".join(lines) + "\n")

    @staticmethod
    def _errors() -> type[Exception]:
        from confluent_kafka import KafkaException

        return KafkaException

    def _settings(self) -> dict[str, str]:
        controller = f"{HOST}:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            # Records here bear times of long ago, too: a topic that is to lose old ones says so itself.
            "log.retention.ms": "-1",
            "group.initial.rebalance.delay.ms": "0",
            # One broker: internal topics have one replica, and few partitions start sooner.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "log.cleaner.threads": "1",
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
            **self.settings,
        }
