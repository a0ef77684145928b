"""Kafka beside the database: what a fence costs (a real broker, a thousand partitions), and a replay."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import events_mirror, events_replay
from benchmarks.cluster import bench_cluster, missing_major
from benchmarks.harness import Row, compare
from benchmarks.kafka_node import KafkaNode
from pitr.events.fence_code import encode_fence
from pitr.events.fence_take import LogBegins, take_fence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.postgres.fence_mark import FenceMarker

TOPICS, PARTITIONS = 10, 100
FENCE_MS_MAX = 100.0
FENCE_EVERY_S = 10.0
CORE_PERCENT_MAX = 0.5
_MAJOR = 17


def run_all(work: Path, quick: bool) -> list[Row]:
    """Return the rows of each part."""
    absent = missing_major(_MAJOR)
    if absent is not None:
        return [Row("events", "", None, absent, None, None, "", None)]
    node = KafkaNode(work / "kafka")
    try:
        node.start()
        with bench_cluster(work, major=_MAJOR, settings={}) as cluster:
            rows = fence(node, cluster.dsn, 20 if quick else 200)
        folder = work / "from-broker"
        folder.mkdir(mode=0o755)
        read = events_replay.from_broker(folder, node, quick)
    finally:
        node.crash()
    folder = work / "replay"
    folder.mkdir(mode=0o755)
    return rows + events_replay.run_all(folder, quick) + read + events_mirror.run_all(folder, quick)


def fence(node: KafkaNode, dsn: str, count: int) -> list[Row]:
    """Measure fences of a thousand partitions: how long one takes, and what its CPU is of a core."""
    flows = []
    for number in range(TOPICS):
        topic = node.create_topic(f"fence-{number}", PARTITIONS)
        node.produce(topic, [b"x"])
        flows.append(FlowDeclaration(topic, Flow.SINK_GROUP, group="sink"))
    broker = KafkaBroker(KafkaSettings(node.bootstrap))
    begins, walls, size = LogBegins(broker), [], 0
    with FenceMarker(lambda: dsn) as marker:
        for _ in range(3):  # connections are made, the table as well
            take_fence(broker, marker, flows, now=lambda: datetime.now(UTC), begins=begins)
        cpu_before = time.process_time()
        for _ in range(count):
            began = time.monotonic()
            taken = take_fence(broker, marker, flows, now=lambda: datetime.now(UTC), begins=begins)
            walls.append((time.monotonic() - began) * 1000)
            assert taken.fence.unknown is None, taken.fence.unknown
            size = len(encode_fence(taken.fence))
        cpu_s = (time.process_time() - cpu_before) / count
    name = f"events: fence of {TOPICS * PARTITIONS} partitions"
    return [
        compare(f"{name}: median", "ms", statistics.median(walls), "", None, at_most=FENCE_MS_MAX),
        compare(f"{name}: longest of {count}", "ms", max(walls), "", None),
        compare(
            f"{name}: CPU at one each 10 s",
            "% of a core",
            cpu_s / FENCE_EVERY_S * 100,
            "",
            None,
            at_most=CORE_PERCENT_MAX,
        ),
        compare(f"{name}: text", "KiB", size / 1024, "", None),
    ]
