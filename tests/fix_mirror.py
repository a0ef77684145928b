"""Two real Kafka clusters and a real MirrorMaker 2 between them, in its dedicated mode: one JVM more.

Intervals that are minutes by default are seconds here.  Its heartbeats in the source come from a flow in the
other direction that mirrors nothing.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_cli import wait_until
from fix_kafka import JavaProcess, KafkaNode, kafka_jars

from pitr.events.mirror_names import MirrorNames, ReplicationPolicy

SOURCE = "eu"
TARGET = "us"
MAIN = "org.apache.kafka.connect.mirror.MirrorMaker"
READY = "Finished starting connectors and tasks"
READY_LOGGER = "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.connect=info"
START_TIMEOUT_S = 600.0
MIRROR_TIMEOUT_S = 300.0


@dataclass(slots=True)
class MirrorPair:
    """A source, a target and the mirror; ``names`` are what it calls things on the target."""

    folder: Path
    policy: ReplicationPolicy = ReplicationPolicy.DEFAULT
    settings: Mapping[str, str] = field(default_factory=dict)
    source: KafkaNode = field(init=False)
    target: KafkaNode = field(init=False)
    process: JavaProcess = field(init=False)

    def __post_init__(self) -> None:
        self.source = KafkaNode(self.folder / SOURCE)
        self.target = KafkaNode(self.folder / TARGET)
        self.process = JavaProcess(self.folder, "mm2")

    @property
    def names(self) -> MirrorNames:
        return MirrorNames(SOURCE, self.policy)

    def start(self) -> MirrorPair:
        """Start both clusters; the mirror is started once there are topics."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.source.start()
        self.target.start()
        return self

    def mirror(self) -> None:
        """Start the mirror and return when its connectors run; after a crash it goes on as itself."""
        config = self.folder / "mm2.properties"
        config.write_text("".join(f"{name} = {value}\n" for name, value in self._config().items()))
        self.process.log.unlink(missing_ok=True)
        self.process.start(MAIN, str(config), heap="384m", jars=kafka_jars(), options=[READY_LOGGER])

        def is_ready() -> bool:
            assert self.process.is_alive, f"the mirror ended\n{self.process.tail()}"
            return READY in self.process.log.read_text(errors="replace")

        wait_until(is_ready, f"a mirror\n{self.process.tail()}", timeout_s=START_TIMEOUT_S, every_s=0.5)

    def wait_for(self, topic: str, count: int, partition: int = 0) -> None:
        """Return when the target's partition has at least so many offsets."""
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        at = TopicPartition(self.names.remote(topic), partition)
        consumer = Consumer(
            {
                "bootstrap.servers": self.target.bootstrap,
                "group.id": f"w{time.monotonic_ns()}",
                "log_level": 0,
            }
        )

        def is_there() -> bool:
            assert self.process.is_alive, f"the mirror ended\n{self.process.tail()}"
            try:
                return bool(consumer.get_watermark_offsets(at, timeout=5)[1] >= count)
            except KafkaException:
                return False  # the topic is not there yet

        try:
            wait_until(is_there, f"{count} offsets of {at.topic}", timeout_s=MIRROR_TIMEOUT_S, every_s=0.2)
        finally:
            consumer.close()

    def stop(self) -> None:
        """Kill all of it: nobody needs its data."""
        for one in (self.process, self.source.process, self.target.process):
            one.crash()

    def _config(self) -> dict[str, str]:
        internal = ("offset.storage", "status.storage", "config.storage")
        topics = ("checkpoints.topic", "heartbeats.topic", "offset-syncs.topic")
        forth, back = f"{SOURCE}->{TARGET}", f"{TARGET}->{SOURCE}"
        config = {
            "clusters": f"{SOURCE}, {TARGET}",
            f"{SOURCE}.bootstrap.servers": self.source.bootstrap,
            f"{TARGET}.bootstrap.servers": self.target.bootstrap,
            f"{forth}.enabled": "true",
            f"{forth}.topics": ".*",
            f"{forth}.groups": ".*",
            f"{forth}.emit.heartbeats.enabled": "false",
            f"{back}.enabled": "false",
            f"{back}.emit.heartbeats.enabled": "true",
            "replication.factor": "1",
            **{f"{name}.replication.factor": "1" for name in (*internal, *topics)},
            "offset.storage.partitions": "1",
            "status.storage.partitions": "1",
            "refresh.topics.interval.seconds": "2",
            "refresh.groups.interval.seconds": "2",
            "sync.topic.acls.enabled": "false",  # a broker without an authorizer has none
            "emit.heartbeats.interval.seconds": "1",
            "emit.checkpoints.interval.seconds": "1",
            "sync.group.offsets.enabled": "true",
            "sync.group.offsets.interval.seconds": "1",
            "offset.flush.interval.ms": "2000",
            "offset-syncs.topic.location": "target",
            "offset.lag.max": "100",
            # Without the flow before it MirrorMaker takes no notice.
            f"{forth}.consumer.isolation.level": "read_committed",
            # A scan of every class takes most of a minute.
            "plugin.discovery": "service_load",
        }
        if self.policy is ReplicationPolicy.IDENTITY:
            config["replication.policy.class"] = "org.apache.kafka.connect.mirror.IdentityReplicationPolicy"
        return {**config, **self.settings}


MakeMirror = Callable[..., MirrorPair]


@pytest.fixture
def make_mirror() -> Iterator[MakeMirror]:
    """Return a callable that starts two clusters: ``make_mirror(policy=…)``; the mirror is not started."""
    made: list[MirrorPair] = []
    top = Path(tempfile.mkdtemp(prefix="pm-"))

    def make(**parts: object) -> MirrorPair:
        made.append(MirrorPair(top / str(len(made)), **parts))  # type: ignore[arg-type]
        return made[-1].start()

    try:
        yield make
    finally:
        for one in made:
            one.stop()
        shutil.rmtree(top, ignore_errors=True)
