"""The tables [[redis]] and [[redis.namespace]] of the configuration: derived state beside the database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from cli.config_table import Duration, Name, Table
from pitr.derived.policy import COUNTER, NAMESPACES_MAX, PREFIX_BYTES_MAX, Namespace, Policy

SITES_MAX = 16
ADDRESSES_MAX = 64
_COUNTER_HEAD = "pitr:epoch:"
DEADLINE_S = 3_600.0
TIMEOUT_S = 10.0
# Each makes every master write all that it holds.
SNAPSHOT_EVERY_S_MIN = 60.0


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """One site.  ``credentials_file`` holds user and password; nothing secret is in here."""

    name: str
    addresses: tuple[tuple[str, int], ...]
    namespaces: tuple[Namespace, ...]
    credentials_file: Path | None = None
    is_tls: bool = False
    checks_names: bool = True
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    timeout_s: float = TIMEOUT_S
    deadline_s: float = DEADLINE_S
    snapshots: Literal["replication", "file"] = "replication"
    snapshot_every_s: float | None = None


def read_address(text: str) -> str:
    """Check ``HOST:PORT``; an IPv6 address stands in brackets."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_named = bool(bare) and all(each.isalnum() or each in ".-_:%" for each in bare)
    if not colon or not is_named or (":" in bare and host == bare) or not port.isdigit():
        raise ValueError("expected HOST:PORT, such as '10.0.0.5:6379', without user or password")
    if not 0 < int(port) < 65_536:
        raise ValueError("expected a port from 1 to 65535")
    return text


class NamespaceTable(Table):
    """As it stands in the file."""

    prefix: Annotated[str, Field(min_length=1, max_length=PREFIX_BYTES_MAX)]
    policy: Literal["drop", "keep", "restore", "epoch"]
    sessions: bool = False
    counter: Annotated[str, Field(pattern=f"^(?:{COUNTER.pattern})$")] | None = None

    def namespace(self) -> Namespace:
        """Return the value.  Raises MalformedValue."""
        policy, counter = Policy(self.policy), self.counter
        if policy is Policy.EPOCH and counter is None:
            counter = _COUNTER_HEAD + self.prefix.rstrip(":")
        return Namespace(self.prefix, policy, self.sessions, counter)


def whole_namespaces(found: list[NamespaceTable]) -> list[NamespaceTable]:
    """Refuse what two namespaces say together, or one of itself."""
    prefixes = [one.prefix for one in found]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise ValueError(f"the prefix {prefix!r} is given twice")
    for one in found:
        one.namespace()
    counters = [one.namespace().counter for one in found if one.policy == "epoch"]
    if len(set(counters)) < len(counters):
        raise ValueError("two namespaces have the same counter")
    return found


class RedisTable(Table):
    """As it stands in the file."""

    name: Name = "redis"
    addresses: Annotated[
        list[Annotated[str, AfterValidator(read_address)]], Field(min_length=1, max_length=ADDRESSES_MAX)
    ]
    credentials_file: str | None = None
    tls: bool = False
    verify_names: bool = True
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    timeout: Duration = TIMEOUT_S
    deadline: Duration = DEADLINE_S
    snapshots: Literal["replication", "file"] = "replication"
    snapshot_every: Duration | None = None
    namespace: Annotated[
        list[NamespaceTable], Field(max_length=NAMESPACES_MAX), AfterValidator(whole_namespaces)
    ] = Field(default_factory=list)


def whole_sites(found: list[RedisTable]) -> list[RedisTable]:
    """Refuse two sites of a name, and TLS files without TLS."""
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the name {name!r} is given twice")
    for one in found:
        files = (one.ca_file, one.certificate_file, one.key_file)
        if not one.tls and (any(files) or not one.verify_names):
            raise ValueError(f"{one.name}: files and names of TLS are given, and tls is not true")
        if one.snapshot_every is not None and one.snapshot_every < SNAPSHOT_EVERY_S_MIN:
            raise ValueError(f"{one.name}: snapshot_every is at least {SNAPSHOT_EVERY_S_MIN:g} s")
        if one.key_file is not None and one.certificate_file is None:
            raise ValueError(f"{one.name}: key_file is the key of certificate_file, which is not given")
    return found


RedisTables = Annotated[list[RedisTable], Field(max_length=SITES_MAX), AfterValidator(whole_sites)]


def redis_settings(tables: list[RedisTable], base: Path) -> tuple[RedisSettings, ...]:
    """Return the settings of all sites."""

    def path(text: str | None) -> Path | None:
        if text is None:
            return None
        found = Path(text).expanduser()
        return found if found.is_absolute() else base / found

    return tuple(
        RedisSettings(
            one.name,
            tuple(_host_and_port(text) for text in one.addresses),
            tuple(each.namespace() for each in one.namespace),
            path(one.credentials_file),
            one.tls,
            one.verify_names,
            path(one.ca_file),
            path(one.certificate_file),
            path(one.key_file),
            one.timeout,
            one.deadline,
            one.snapshots,
            one.snapshot_every,
        )
        for one in tables
    )


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
