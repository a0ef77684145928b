"""The tables [[redis]]: what they may say, and that nothing secret fits into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fix_config import BASE, least_tables

from cli.config_redis import RedisSettings
from cli.config_schema import check_tables
from cli.settings import Settings
from pitr.derived.policy import Namespace, Policy


def checked(*sites: dict[str, Any]) -> Settings | str:
    tables = least_tables(redis=list(sites))
    found = check_tables(tables, base=BASE, path=BASE / "pitr.toml")
    if isinstance(found, Settings):
        return found
    return "; ".join(f"{one.name}: {one.text}" for one in found)


def only(site: dict[str, Any]) -> RedisSettings:
    found = checked(site)
    assert isinstance(found, Settings), found
    (settings,) = found.redis
    return settings


def test_addresses_files_and_namespaces_are_as_they_are_written() -> None:
    found = only(
        {
            "name": "wards",
            "addresses": ["10.0.0.1:6379", "[fe80::1]:6380"],
            "credentials_file": "redis.toml",
            "tls": True,
            "ca_file": "/tls/ca.pem",
            "timeout": "2s",
            "namespace": [
                {"prefix": "cache:", "policy": "epoch"},
                {"prefix": "page:", "policy": "epoch", "counter": "pages"},
                {"prefix": "session:", "policy": "keep", "sessions": True},
            ],
        }
    )
    assert found.addresses == (("10.0.0.1", 6379), ("fe80::1", 6380))
    assert (found.credentials_file, found.ca_file) == (BASE / "redis.toml", Path("/tls/ca.pem"))
    assert (found.timeout_s, found.deadline_s, found.snapshots) == (2.0, 3600.0, "replication")
    assert found.namespaces == (
        Namespace("cache:", Policy.EPOCH, counter="pitr:epoch:cache"),
        Namespace("page:", Policy.EPOCH, counter="pages"),
        Namespace("session:", Policy.KEEP, is_sessions=True),
    )


def test_without_the_table_there_is_no_redis() -> None:
    found = checked()
    assert isinstance(found, Settings)
    assert found.redis == ()


@pytest.mark.parametrize(
    ("site", "text"),
    [
        ({"addresses": []}, "addresses"),
        ({"addresses": ["redis://user:secret@host:1"]}, "HOST:PORT"),
        ({"addresses": ["secret@host:1"]}, "without user or password"),
        ({"addresses": ["host"]}, "HOST:PORT"),
        ({"addresses": ["fe80::1:6379"]}, "HOST:PORT"),
        ({"addresses": ["h:0"]}, "port"),
        ({"addresses": ["h:1"], "password": "x"}, "no such setting"),
        ({"addresses": ["h:1"], "ca_file": "x"}, "tls is not true"),
        ({"addresses": ["h:1"], "snapshot_every": "59s"}, "at least 60 s"),
        ({"addresses": ["h:1"], "tls": True, "key_file": "x"}, "certificate_file"),
        ({"addresses": ["h:1"], "namespace": [{"prefix": "a", "policy": "flush"}]}, "policy"),
        ({"addresses": ["h:1"], "namespace": [{"prefix": "a", "policy": "drop"}] * 2}, "given twice"),
        ({"addresses": ["h:1"], "namespace": [{"prefix": "a", "policy": "drop", "counter": "c"}]}, "counter"),
        ({"addresses": ["h:1"], "namespace": [{"prefix": "{a}", "policy": "epoch"}]}, "counter"),
        (
            {
                "addresses": ["h:1"],
                "namespace": [{"prefix": one, "policy": "epoch", "counter": "c"} for one in ("a", "b")],
            },
            "same counter",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(site: dict[str, Any], text: str) -> None:
    found = checked(site)
    assert isinstance(found, str)
    assert text in found


def test_two_sites_of_one_name_are_refused() -> None:
    found = checked({"addresses": ["h:1"]}, {"addresses": ["h:2"]})
    assert isinstance(found, str)
    assert "given twice" in found
