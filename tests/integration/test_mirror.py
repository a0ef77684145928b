"""A real MirrorMaker 2: killed in mid-flow, its source gone; what is read from the mirror misses nothing."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_cli import wait_until
from fix_fences import fence_of
from fix_kafka import KafkaNode
from fix_mirror import MakeMirror, MirrorPair

from pitr.events.broker import OffsetGone
from pitr.events.fence import Fence, PartitionFence, TopicFence
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.last_records import LastRecords
from pitr.events.mirror_age import mirrored_until
from pitr.events.mirror_broker import MirrorBroker
from pitr.events.mirror_fences import FenceTranslator, TranslatedPartition
from pitr.events.mirror_names import ReplicationPolicy
from pitr.events.mirror_search import READ_MAX
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import SyncBook
from pitr.events.sync_keeper import SyncKeeper
from pitr.events.translate import Basis

TOPIC = "orders"
PARTITIONS = 2
pytestmark = pytest.mark.slow


class Flow:
    """Produces in Kafka transactions, one of ten aborted; knows what was committed."""

    def __init__(self, node: KafkaNode, seed: int) -> None:
        self.random = random.Random(seed)
        self.producer = node.producer(**{"transactional.id": f"flow-{seed}"})
        self.producer.init_transactions(120)
        self.number = 0
        self.committed: list[tuple[int, str]] = []

    def run(self, transactions: int) -> None:
        for _ in range(transactions):
            self.producer.begin_transaction()
            names = []
            for _ in range(self.random.randint(1, 40)):
                self.number += 1
                partition = self.random.randrange(PARTITIONS)
                names.append((partition, f"e{self.number}"))
                self.producer.produce(
                    TOPIC, json.dumps(names[-1]), partition=partition, headers={"event-id": names[-1][1]}
                )
            if self.random.random() < 0.1:
                self.producer.abort_transaction(120)
            else:
                self.producer.commit_transaction(120)
                self.committed += names


def broker(node: KafkaNode) -> KafkaBroker:
    return KafkaBroker(KafkaSettings(node.bootstrap, call_timeout_s=60.0, read_timeout_s=180.0))


def take(source: KafkaBroker, number: int) -> Fence:
    """Return a fence of the topic, as the daemon takes it."""
    at = [TopicPartition(TOPIC, n) for n in range(PARTITIONS)]
    facts = source.topics([TOPIC])[TOPIC]
    begins, ends = source.begins(at), source.ends(at)
    last = LastRecords(source).identify(ends)
    parts = []
    for one in at:
        offset, identity = last.get(one, (None, None))
        parts.append(PartitionFence(one.partition, begins[one], ends[one], None, identity, offset))
    topics = (TopicFence(TOPIC, facts.topic_id, tuple(parts)),)
    fence = fence_of(number)
    return replace(fence, cluster_id=source.cluster_id(), topics=topics, groups=())


def names_from(records: Iterable[object]) -> list[str]:
    return [json.loads(one.value)[1] for one in records]  # type: ignore[attr-defined]


def target_names(pair: MirrorPair) -> list[str]:
    return list(broker(pair.target).names())


class Taken:
    """A fence, and how many committed events of each partition came before it."""

    def __init__(self, fence: Fence, committed: list[tuple[int, str]]) -> None:
        self.fence = fence
        self.before = {n: {name for at, name in committed if at == n} for n in range(PARTITIONS)}


def check(
    pair: MirrorPair, book: SyncBook, flow: Flow, taken: Taken, mirrored: dict[int, list[str]]
) -> tuple[TranslatedPartition, ...]:
    """Read the mirror from a fence on: each event after it that the mirror has is there."""
    target = broker(pair.target)
    translator = FenceTranslator(target, pair.names, book, [TOPIC])
    fence, parts = translator.closely(taken.fence)
    mirror = MirrorBroker(target, pair.names)
    for one in fence.topics[0].partitions:
        at = TopicPartition(TOPIC, one.number)
        end = mirror.ends([at])[at]
        read = names_from(mirror.read(at, one.before, end))
        wanted = set(mirrored[one.number]) - taken.before[one.number]
        assert wanted <= set(read), f"{at}: {len(wanted - set(read))} are missing"
    return parts


def all_mirrored(pair: MirrorPair) -> dict[int, list[str]]:
    mirror = MirrorBroker(broker(pair.target), pair.names)
    found = {}
    for number in range(PARTITIONS):
        at = TopicPartition(TOPIC, number)
        found[number] = names_from(mirror.read(at, 0, mirror.ends([at])[at]))
    return found


class Polling:
    """The daemon's part: polls pairs, with the newest fence that was taken since."""

    def __init__(self, pair: MirrorPair, folder: Path) -> None:
        self.book = SyncBook(folder / "pairs.sqlite")
        self.keeper = SyncKeeper(broker(pair.target), pair.names, self.book)
        self.fence: Fence | None = None
        self.lock = threading.Lock()

    def poll(self) -> None:
        while self.keeper.poll(self.fence).behind:
            pass
        self.fence = None


@pytest.mark.timeout(3000)
def test_a_mirror_killed_in_mid_flow_and_its_source_gone_lose_no_mirrored_event(
    make_mirror: MakeMirror, tmp_path: Path
) -> None:
    pair = make_mirror()
    pair.source.create_topic(TOPIC, PARTITIONS)
    flow = Flow(pair.source, seed=1)
    flow.run(20)
    pair.mirror()
    pair.wait_for(TOPIC, 50)
    source = broker(pair.source)
    polling = Polling(pair, tmp_path)
    wait_until(lambda: pair.names.syncs in target_names(pair), "offset syncs", timeout_s=120)
    taken: list[Taken] = []

    def go_on(rounds: int) -> None:
        for _ in range(rounds):
            flow.run(20)
            taken.append(Taken(take(source, len(taken) + 1), flow.committed))
            polling.fence = polling.fence or taken[-1].fence
            polling.poll()

    go_on(8)
    pair.process.crash()
    go_on(3)
    pair.mirror()
    go_on(8)
    ends = take(source, 99)
    wait_until(
        lambda: (
            {name for one in all_mirrored(pair).values() for name in one}
            >= {name for _, name in flow.committed}
        ),
        "all is mirrored",
        timeout_s=300,
        every_s=2,
    )
    polling.poll()
    polling.fence = ends
    polling.poll()
    assert mirrored_until(broker(pair.target), pair.names) is not None
    pair.source.crash()  # the region is gone
    pair.process.crash()
    mirrored = all_mirrored(pair)
    copied = {name for one in mirrored.values() for name in one}
    assert copied <= {name for _, name in flow.committed}, "what was aborted is not copied"
    parts = [part for one in taken for part in check(pair, polling.book, flow, one, mirrored)]
    exact = sum(part.translation.is_exact for part in parts)
    print(
        f"{len(parts)} translations, {exact} exact, records read: max {max(part.read for part in parts)};"
        f" {sum(map(len, mirrored.values()))} copies of {len(flow.committed)} events"
    )
    assert max(part.read for part in parts) <= READ_MAX
    assert exact >= len(parts) // 2
    assert not any(part.translation.missing for part in parts)


@pytest.mark.timeout(3000)
def test_a_mirror_with_the_identity_policy_and_deleted_records_shows_the_gap(
    make_mirror: MakeMirror, tmp_path: Path
) -> None:
    pair = make_mirror(policy=ReplicationPolicy.IDENTITY)
    pair.source.create_topic(TOPIC, PARTITIONS)
    flow = Flow(pair.source, seed=2)
    source = broker(pair.source)
    early = Taken(take(source, 1), flow.committed)
    flow.run(20)
    middle = Taken(take(source, 2), flow.committed)
    flow.run(20)
    pair.mirror()
    polling = Polling(pair, tmp_path)
    wait_until(
        lambda: (
            TOPIC in broker(pair.target).names()
            and {name for one in all_mirrored(pair).values() for name in one}
            >= {name for _, name in flow.committed}
        ),
        "all is mirrored",
        timeout_s=600,
        every_s=2,
    )
    polling.poll()
    polling.fence = take(source, 3)
    polling.poll()
    before = datetime.now(UTC)
    pair.source.crash()
    pair.process.crash()
    mirrored = all_mirrored(pair)
    for one in (early, middle):
        check(pair, polling.book, flow, one, mirrored)
    translator = FenceTranslator(broker(pair.target), pair.names, polling.book, [TOPIC])
    lower = translator.closely(middle.fence)[0].topics[0].partitions[0].before
    pair.target.delete_records(TOPIC, lower + 5)
    again = FenceTranslator(broker(pair.target), pair.names, polling.book, [TOPIC])
    fence, parts = again.closely(early.fence)
    start = fence.topics[0].partitions[0].before
    told = parts[0].translation
    assert told.is_cut or told.missing or told.basis is Basis.LOG_START
    at = TopicPartition(TOPIC, 0)
    if told.missing is None:
        with pytest.raises(OffsetGone):
            list(MirrorBroker(broker(pair.target), pair.names).read(at, start, lower + 6))
    until = mirrored_until(broker(pair.target), pair.names)
    assert until is None or until <= before
