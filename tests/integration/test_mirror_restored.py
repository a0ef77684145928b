"""The source region dies in mid-flow: restored in another one, and replayed from what MirrorMaker 2 copied.

Real PostgreSQL, two real Kafka clusters, a real MirrorMaker 2 that is killed once before.  The truth is what
pg_waldump shows: a database restored to an end has each effect whose commit record lies before it, and after
the replay also that of each event which the mirror has; each once, and nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_cli import MakeSite, Site, end_servers, wait_until
from fix_event_flows import HANDLERS, MAX_LAG_S, PARTITIONS, Applications, Topics
from fix_event_restore import Effects, begin, configure, fences
from fix_mirror import MakeMirror, MirrorPair

from pitr.events.flows import Flow
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.mirror_broker import MirrorBroker
from pitr.events.partition import TopicPartition
from pitr.events.plan_code import decode_plan
from pitr.wal.lsn import LSN

_COMMIT = re.compile(r"tx: +(\d+), lsn: ([0-9A-F/]+),.* desc: COMMIT")
_TRANSACTION_MAX = 8
# A mirror that was killed copies once more what a sink has applied, also behind its cursor: such a topic's
# handlers take an event that is there for what it is (docs/events.md, "The mirror").
_ONCE_MORE = "SELECT event_id, key, 'replay' FROM pitr_batch b ORDER BY seq"
_IF_NEW = _ONCE_MORE.replace(
    "ORDER BY", "WHERE NOT EXISTS (SELECT FROM effect e WHERE e.event_id = b.event_id) ORDER BY"
)


@dataclass(frozen=True)
class Truth:
    """Of each effect where its transaction's commit record begins, and which events the mirror has."""

    commits: Mapping[str, LSN]
    mirrored: frozenset[str]
    copies: int

    @classmethod
    def of(cls, site: Site, since: str, pair: MirrorPair, topics: Topics) -> Truth:
        server = site.server
        end = server.value("SELECT pg_current_wal_flush_lsn()")
        words = [
            str(server.instance.installation.bin_dir / "pg_waldump"), "-p", str(server.data_dir / "pg_wal"),
            "-r", "Transaction", "-s", since, "-e", str(end),
        ]  # fmt: skip
        told = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert told.returncode == 0, told.stderr
        lsns = {int(xid): LSN.parse(lsn) for xid, lsn in _COMMIT.findall(told.stdout)}
        rows = server.execute(
            "SELECT event_id, xmin::text::bigint FROM effect UNION ALL"
            " SELECT event_id, xmin::text::bigint FROM effect_once"
        )
        names = _mirrored(pair, topics)
        return cls({str(name): lsns[int(str(xid))] for name, xid in rows}, frozenset(names), len(names))

    def before(self, end: LSN) -> set[str]:
        return {name for name, lsn in self.commits.items() if lsn < end}


def _mirrored(pair: MirrorPair, topics: Topics) -> list[str]:
    broker = MirrorBroker(KafkaBroker(KafkaSettings(pair.target.bootstrap, call_timeout_s=60.0)), pair.names)
    found = []
    for topic in (topics.orders, *topics.consumed):
        for number in range(PARTITIONS):
            at = TopicPartition(topic, number)
            records = broker.read(at, 0, broker.ends([at])[at])
            found += [(one.header("event-id") or b"").decode() for one in records]
    return found


def _with_mirror(site: Site, pair: MirrorPair, topics: Topics) -> None:
    configure(site, pair.source, topics, unknown="apply")
    handlers = HANDLERS.format(unknown="apply")
    before, consumed, after = handlers.partition('type = "consumed"\n')
    (site.config.parent / "handlers.toml").write_text(
        before + consumed + after.replace(_ONCE_MORE.replace(" b ", " "), _IF_NEW, 1)
    )
    assert _IF_NEW in (site.config.parent / "handlers.toml").read_text()
    table = f'\n[events.mirror]\nbootstrap = "{pair.target.bootstrap}"\n'
    site.config.write_text(site.config.read_text() + table + f'source_alias = "{pair.names.source_alias}"\n')


def _take_fences(site: Site, count: int) -> None:
    """Let the daemon take so many fences while the applications go on."""
    begun = fences(site)

    def are_taken() -> bool:
        site.daemon.check_alive()
        return fences(site) >= begun + count

    wait_until(are_taken, f"{count} fences", timeout_s=300, every_s=0.5)


def _target(site: Site) -> str:
    return f"lsn:{site.server.value('SELECT pg_current_wal_insert_lsn()')}"


def _restore_and_replay(site: Site, target: str, truth: Truth) -> None:
    into = site.folder / f"into-{time.monotonic_ns()}"
    site.started.append(into)
    words = ["restore", "--identity", site.identity, "--to", target, "--into", into]
    words += ["--start", "--replay", "--mirror", "--yes", "--json"]
    done = site.program("-c", site.config, *words, timeout_s=900)
    try:
        after = Effects.of(done.data["replay"]["dsn"])
    finally:
        end_servers([into])
    plan = decode_plan(Path(f"{into}.events-plan.json").read_bytes())
    had = truth.before(plan.restored.end)
    wanted = had | truth.mirrored
    found = after.effect.keys() | after.once
    assert wanted - found == set(), "missing"
    assert found - wanted == set(), "extra"
    assert {name: count for name, count in after.effect.items() if count > 1} == {}, "applied twice"
    orders = next(one for one in plan.topics if one.flow is Flow.DB_FIRST)
    for one in orders.partitions:
        assert (one.tally.unknown, one.tally.lost_branch, one.gaps) == (0, 0, ())
        assert not one.is_estimated
    said = json.loads(Path(f"{into}.replay-certificate.json").read_text())
    assert said["state"] == "reconciled"
    replayed = sum(one.tally.records for topic in plan.topics for one in topic.partitions)
    print(
        f"{target}: {len(had)} effects before, {len(wanted)} after; {replayed} of {truth.copies} copies read;"
        f" orders start for {sorted({one.reason.value for one in orders.partitions})}"
    )


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_source_region_dies_in_mid_flow_and_each_mirrored_event_is_in_the_restored_database_once(
    make_site: MakeSite, make_mirror: MakeMirror
) -> None:
    site, pair = make_site(), make_mirror()
    topics = Topics.make(pair.source, all_flows=True)
    _with_mirror(site, pair, topics)
    site.server.execute("ALTER SYSTEM SET wal_keep_size = '8GB'")
    site.server.execute("SELECT pg_reload_conf()")
    since = str(site.server.value("SELECT pg_current_wal_lsn()"))
    begin(site)
    targets = []
    with Applications(site.server, pair.source, topics, seed=7) as applications:
        pair.mirror()
        for topic in (topics.orders, *topics.consumed):
            for number in range(PARTITIONS):
                pair.wait_for(topic, 20, number)
        site("backup", "--type", "full", "--json")
        _take_fences(site, 10)
        targets.append(_target(site))
        pair.process.crash()
        _take_fences(site, 10)
        targets.append(_target(site))
        pair.mirror()
        _take_fences(site, 20)
        targets.append(_target(site))
        _take_fences(site, 3)
        applications.check()
        lag_s = applications.lag_s_most
        pair.source.crash()  # in mid-flow: four writers, a relay, a producer and three sinks are at work
        pair.process.crash()
    assert lag_s < MAX_LAG_S, "this machine is slower than the flow declares"
    site.wait_durable(timeout_s=300)
    truth, taken = Truth.of(site, since, pair, topics), fences(site)
    assert site.daemon.stop(timeout_s=300) == 0
    site.server.stop("immediate")
    lost = truth.commits.keys() - truth.mirrored
    print(
        f"{len(truth.commits)} effects, {taken} fences; {truth.copies} copies of"
        f" {len(truth.mirrored)} events, {len(lost)} never mirrored"
    )
    aborted = truth.mirrored - applications.ledger.orders - applications.ledger.consumed
    # Of the transaction that was committed as the source died nobody heard whether it was.
    unheard = len(aborted - applications.ledger.once)
    assert unheard <= _TRANSACTION_MAX, "the mirror has what was never committed in Kafka"
    assert truth.copies > len(truth.mirrored), "the mirror that was killed copied something once more"
    for target in targets:
        _restore_and_replay(site, target, truth)
