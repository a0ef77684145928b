"""A real Kafka broker for the tests; see ``benchmarks.kafka_node``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.java_process import JavaProcess, jar_folder, java
from benchmarks.kafka_node import KAFKA_VERSION, KafkaNode, kafka_jars

__all__ = ["KAFKA_VERSION", "JavaProcess", "KafkaNode", "jar_folder", "java", "kafka_jars"]

MakeKafka = Callable[..., KafkaNode]


@pytest.fixture(scope="session")
def kafka_node() -> Iterator[KafkaNode]:
    """Return the broker that a worker's tests share: each makes topics and groups of its own."""
    top = Path(tempfile.mkdtemp(prefix="pk-"))
    node = KafkaNode(top / "kafka")
    try:
        yield node.start()
    finally:
        node.crash()  # nobody needs its data
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def make_kafka(tmp_path: Path) -> Iterator[MakeKafka]:
    """Return a callable that makes a broker of a test's own, to be started: ``make_kafka(settings={…})``."""
    made: list[KafkaNode] = []

    def make(**parts: Any) -> KafkaNode:
        node = KafkaNode(tmp_path / f"kafka{len(made) + 1}", **parts)
        made.append(node)
        return node

    try:
        yield make
    finally:
        for node in made:
            node.crash()
