"""The table [events], and the client file with its secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fix_config import BASE, least_tables

from cli.config_schema import check_tables
from cli.errors import ConfigRefused, UsageRefused
from cli.events_cluster import verified_over_mirror
from cli.events_plan import declared_flows
from cli.events_settings import EventsSettings
from cli.kafka_client import open_kafka, read_client_file
from cli.settings import Settings
from pitr.errors import NotInitialised
from pitr.events.flows import EventFormat, Flow, FlowDeclaration

ORDERS = {"name": "orders", "flow": "db-first"}


def check(events: dict[str, Any] | None) -> Settings | list[str]:
    tables = least_tables()
    found = check_tables(
        tables if events is None else {**tables, "events": events}, base=BASE, path=BASE / "pitr.toml"
    )
    return found if isinstance(found, Settings) else [f"{one.name}: {one.text}" for one in found]


def settings_of(**events: Any) -> EventsSettings:
    found = check({"bootstrap": "k1:9092, k2:9093", "topic": [ORDERS], **events})
    assert isinstance(found, Settings), found
    assert found.events is not None
    return found.events


def mistakes_of(**events: Any) -> list[str]:
    found = check({"bootstrap": "k1:9092", "topic": [ORDERS], **events})
    assert isinstance(found, list), found
    return found


def test_without_the_table_there_is_no_kafka() -> None:
    found = check(None)
    assert isinstance(found, Settings)
    assert found.events is None


def test_what_holds_where_nothing_is_said() -> None:
    found = settings_of()
    assert (found.fence_every_s, found.store_every_s, found.client_file, found.mirror) == (10, 60, None, None)
    assert found.topics == (FlowDeclaration("orders", Flow.DB_FIRST),)
    assert found.flows["orders"].format is EventFormat.HEADERS


def test_topics_are_planned_in_their_order_in_the_file_whichever_way_they_are_asked_for() -> None:
    found = settings_of(topic=[{"name": name, "flow": "db-first"} for name in ("users", "orders", "bills")])
    assert [one.topic for one in declared_flows(found, ())] == ["users", "orders", "bills"]
    assert [one.topic for one in declared_flows(found, ("bills", "users"))] == ["users", "bills"]
    with pytest.raises(UsageRefused, match="topic others is not declared"):
        declared_flows(found, ("orders", "others"))


def test_each_flow_says_what_it_needs() -> None:
    found = settings_of(
        client_file="kafka.properties",
        topic=[
            ORDERS,
            {"name": "b", "flow": "sink-group", "group": "sink", "format": "debezium-outbox"},
            {"name": "c", "flow": "sink-cursor", "cursor_sql": "SELECT 0, 1"},
            {"name": "d", "flow": "event-first", "max_lag": "2min"},
        ],
        mirror={"bootstrap": "m:9092", "source_alias": "east"},
    )
    assert found.client_file == BASE / "kafka.properties"
    assert found.flows["d"].max_lag_s == 120
    assert found.mirror is not None
    assert found.mirror.syncs_topic == "mm2-offset-syncs.east.internal"
    assert not found.mirror.verify


def test_a_verification_asks_the_mirror_where_that_is_said_or_typed() -> None:
    said = settings_of(mirror={"bootstrap": "m:9092", "source_alias": "east", "verify": True})
    assert said.mirror is not None
    assert said.mirror.verify
    for mirror, words in (
        ({"bootstrap": "m:9092", "source_alias": "east"}, None),
        (None, "no \\[events.mirror\\]"),
    ):
        whole = check({"bootstrap": "k1:9092", "topic": [ORDERS], **({"mirror": mirror} if mirror else {})})
        assert isinstance(whole, Settings)
        if words is not None:
            with pytest.raises(NotInitialised, match=words):
                verified_over_mirror(whole)
            continue
        typed = verified_over_mirror(whole).events
        assert typed is not None
        assert typed.mirror == said.mirror
    none = check(None)
    assert isinstance(none, Settings)
    with pytest.raises(NotInitialised, match="no \\[events\\]"):
        verified_over_mirror(none)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ({"bootstrap": "k1"}, "host:port"),
        ({"bootstrap": "k1:0"}, "host:port"),
        ({"topic": []}, "events.topic"),
        ({"topic": [{"name": "orders"}]}, "flow: this is required"),
        ({"topic": [{**ORDERS, "flow": "guess"}]}, "db-first"),
        ({"topic": [{"name": "a b", "flow": "db-first"}]}, "expected text that matches"),
        ({"topic": [{"name": "..", "flow": "db-first"}]}, "not a Kafka topic's name"),
        ({"topic": [{"name": "a", "flow": "sink-group"}]}, "needs group"),
        ({"topic": [{"name": "a", "flow": "event-first"}]}, "needs max_lag"),
        ({"topic": [{**ORDERS, "cursor_sql": "SELECT 1"}]}, "belongs to flow sink-cursor only"),
        ({"topic": [ORDERS, ORDERS]}, "declared twice"),
        ({"fence_every": "100ms"}, "fence_every"),
        ({"fence_evry": "10s"}, "did you mean 'fence_every'"),
        ({"mirror": {"bootstrap": "m:9092", "source_alias": "east", "policy": "own"}}, "policy"),
    ],
)
def test_mistakes_are_told_by_their_names(events: dict[str, Any], words: str) -> None:
    found = mistakes_of(**events)
    assert any(words in one for one in found), found


def test_a_client_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text("sasl.password=hunter2\n")
    path.chmod(0o640)
    with pytest.raises(ConfigRefused, match="others may read") as refused:
        read_client_file(path)
    assert "hunter2" not in f"{refused.value} {refused.value.detail} {refused.value.hint}"
    path.chmod(0o600)
    assert read_client_file(path) == {"sasl.password": "hunter2"}


@pytest.mark.parametrize(
    "line",
    [
        "plugin.library.paths=/tmp/evil.so",
        "ssl.engine.location=/tmp/evil.so",
        "sasl.kerberos.kinit.cmd=touch /tmp/evil",
        "auto.offset.reset=earliest",
        "isolation.level=read_uncommitted",
        "debug=all",
        "bootstrap.servers=other:9092",
        "group.id=prod",
        "hunter2",
        "hunter2 \x1b[31m=x",
    ],
)
def test_a_client_file_says_how_to_reach_a_cluster_and_nothing_else(tmp_path: Path, line: str) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text(f"# ours\nsecurity.protocol = SASL_SSL\n\n{line}\n")
    path.chmod(0o600)
    with pytest.raises(ConfigRefused, match="line 4") as refused:
        read_client_file(path)
    said = f"{refused.value} {refused.value.detail} {refused.value.hint}"
    assert "evil" not in said
    assert "hunter2" not in said


def test_a_client_is_made_of_the_file_and_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=u\nsasl.password=hunter2\n"
    )
    path.chmod(0o600)
    broker = open_kafka("127.0.0.1:9", path)
    assert "hunter2" not in repr(broker) + repr(vars(broker))
    with pytest.raises(ConfigRefused, match="cannot be read"):
        open_kafka("127.0.0.1:9", tmp_path / "none")
