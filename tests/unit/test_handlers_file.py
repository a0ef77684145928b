"""Handlers files: read whole, and every mistake told at once."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cli.errors import ConfigRefused
from cli.handlers_file import FILE_BYTES_MAX, load_calls, parse_handlers, read_handlers
from pitr.events.handlers import Choice, Handler, Handlers, SinkKind
from pitr.events.quarantine import OffsetSpan, QuarantineRule
from pitr.events.upcast import Upcast
from pitr.wal.lsn import LSN

GOOD = """
ignore = ["order.viewed"]

[sink]
kind = "sql"
headers = true

[classes]
unknown = "apply"

[[handler]]
type = "order.placed"
version = 2
topics = ["orders"]
keys = "many"
sql = ["INSERT INTO a SELECT 1", "INSERT INTO b SELECT 2"]

[[handler]]
type = "order.changed"
sql = "UPDATE a SET b = 1"

[[upcast]]
type = "order.placed"
version = 1
rename = { total = "amount" }
remove = ["old"]
defaults = { currency = "EUR" }

[[quarantine]]
name = "attack"
principals = ["mallory*"]
since = 2026-11-23T14:05:00Z
after_lsn = "16/B374D848"
offsets = [{ topic = "orders", partition = 3, first = 10, end = 20 }]
stops_key = true
"""


def parsed(text: str) -> Any:
    return parse_handlers(tomllib.loads(text), "0" * 64)


def told(text: str) -> list[str]:
    found = parsed(text)
    assert isinstance(found, list)
    return [f"{one.name}: {one.text}" for one in found]


def test_a_file_becomes_values() -> None:
    assert parsed(GOOD) == Handlers(
        SinkKind.SQL,
        (
            Handler(
                "order.placed",
                2,
                ("INSERT INTO a SELECT 1", "INSERT INTO b SELECT 2"),
                frozenset({"orders"}),
                takes_many=True,
            ),
            Handler("order.changed", 1, ("UPDATE a SET b = 1",)),
        ),
        (Upcast("order.placed", 1, 2, {"total": "amount"}, ("old",), {"currency": "EUR"}),),
        (
            QuarantineRule(
                "attack",
                principals=("mallory*",),
                offsets=(OffsetSpan("orders", 3, 10, 20),),
                since=datetime(2026, 11, 23, 14, 5, tzinfo=UTC),
                after_lsn=LSN.parse("16/B374D848"),
                stops_key=True,
            ),
        ),
        frozenset({"order.viewed"}),
        unknown=Choice.APPLY,
        wants_headers=True,
        sha256="0" * 64,
    )


def test_every_mistake_of_form_is_told_at_once() -> None:
    found = told(
        """
        ignored = ["a"]
        [sink]
        kind = "mail"
        [[handler]]
        type = "a"
        version = 0
        sqll = "SELECT 1"
        [[upcast]]
        type = "a"
        version = 1
        call = "os.system"
        [[quarantine]]
        name = "r"
        since = 2026-11-23T14:05:00
        after_lsn = "here"
        offsets = [{ topic = "a/b" }]
        """
    )
    places = [one.partition(":")[0] for one in found]
    assert sorted(places) == sorted(
        [
            "ignored",
            "sink.kind",
            "handler[0].version",
            "handler[0].sqll",
            "upcast[0].call",
            "quarantine[0].since",
            "quarantine[0].after_lsn",
            "quarantine[0].offsets[0].topic",
        ]
    )
    assert any("did you mean 'ignore'?" in one for one in found)
    assert any("did you mean 'sql'?" in one for one in found)


def test_every_contradiction_is_told_at_once() -> None:
    found = told(
        GOOD.replace('kind = "sql"', 'kind = "sql"\ntopic = "x"\ncall = "a:b"')
        + '[[handler]]\ntype = "order.placed"\nversion = 2\nsql = "COMMIT"\n'
        + '[[upcast]]\ntype = "order.gone"\nversion = 1\n[[quarantine]]\nname = "attack"\n'
    )
    assert [one.partition(":")[0] for one in found] == [
        "handler[2]",
        "handler[2].sql[0]",
        "upcast[1]",
        "quarantine[1]",
        "quarantine[1]",
        "sink.call",
        "sink.topic",
    ]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "handlers.toml"
    with pytest.raises(ConfigRefused, match="cannot be read"):
        read_handlers(path)
    for content in (b"\xff", b"[[handler", b"#" * (FILE_BYTES_MAX + 1), b"a = " + b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ConfigRefused, match="has a mistake"):
            read_handlers(path)
    path.write_text('[sink]\nkind = "topic"\n[[handler]]\ntype = "a"\nsql = "SELECT 1"\n')
    with pytest.raises(ConfigRefused, match="has 2 mistakes") as refused:
        read_handlers(path)
    assert refused.value.detail == "sink: a topic sink needs topic\nhandler[0].sql: a topic sink runs none"
    path.write_text(GOOD)
    assert len(read_handlers(path).sha256) == 64


def test_functions_are_found_beside_the_file_and_all_that_are_not_are_told(tmp_path: Path) -> None:
    (tmp_path / "shop_upcasters.py").write_text("def double(one):\n    return one\nnumber = 1\n")
    calls = [
        Upcast("a", at, 9, call=f"shop_upcasters:{name}") for at, name in enumerate(["double", "number"])
    ]
    good = Handlers(SinkKind.CALLABLE, upcasts=(calls[0],), target="shop_upcasters:double")
    functions, target = load_calls(good, tmp_path)
    assert set(functions) == {"shop_upcasters:double"}
    assert target is functions["shop_upcasters:double"]
    bad = Handlers(SinkKind.CALLABLE, upcasts=tuple(calls), target="shop_nowhere:f")
    with pytest.raises(ConfigRefused) as refused:
        load_calls(bad, tmp_path)
    assert refused.value.detail is not None
    assert refused.value.detail.splitlines()[0].startswith("shop_nowhere:f cannot be imported")
    assert refused.value.detail.splitlines()[1] == "shop_upcasters:number is no function"
