"""Where the server is that is to be archived: one place, several of which one is taken, or whoever leads.

The replication connection decides which server it is; sessions beside it go to the same one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pitr.errors import MalformedValue

# What chooses among several hosts has no meaning where one is named.
_CHOOSING = ("hostaddr", "load_balance_hosts")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's host (a name, an address or a socket's directory) and port, as libpq takes them."""

    host: str
    port: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ServerAddress(Protocol):
    """Thread-safe."""

    @property
    def leads_only(self) -> bool:
        """Whether what ``find`` leads to must be no standby."""

    def find(self) -> str:
        """Return the conninfo to stream from.  Raises ServerUnavailable if nobody leads now."""

    def note_connected(self, endpoint: Endpoint) -> None:
        """Learn which server it is that WAL is streamed from."""

    def session(self) -> str:
        """Return the conninfo of the server that WAL is streamed from; before that as ``find``."""

    def check(self) -> None:
        """Raise ServerUnavailable if another server is to be streamed from.  Cheap."""


class ConfiguredAddress:
    """What a conninfo says; of several hosts libpq takes one for each connection to stream."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._has_several = len(hosts_of(dsn)) > 1
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None

    @property
    def leads_only(self) -> bool:
        return False

    def find(self) -> str:
        return self._dsn

    def note_connected(self, endpoint: Endpoint) -> None:
        with self._lock:
            self._endpoint = endpoint

    def session(self) -> str:
        with self._lock:
            endpoint = self._endpoint
        # With one host there is nothing to choose, and what the operator wrote stays as it is.
        return at_endpoint(self._dsn, endpoint) if self._has_several and endpoint is not None else self._dsn

    def check(self) -> None:
        return


def hosts_of(dsn: str) -> tuple[str, ...]:
    """Return the hosts that a conninfo names.  Raises MalformedValue."""
    settings = _parse(dsn)
    return tuple(str(settings.get("host") or settings.get("hostaddr") or "").split(","))


def chooses_session(dsn: str) -> str | None:
    """Return the ``target_session_attrs`` of a conninfo.  Raises MalformedValue."""
    chosen = _parse(dsn).get("target_session_attrs")
    return None if chosen is None else str(chosen)


def at_endpoint(dsn: str, endpoint: Endpoint) -> str:
    """Return the conninfo with this host and port in the place of its own.  Raises MalformedValue."""
    settings = {name: value for name, value in _parse(dsn).items() if name not in _CHOOSING}
    return make_conninfo("", **{**settings, "host": endpoint.host, "port": endpoint.port})


def database_of(dsn: str) -> str:
    """Return the database that a conninfo leads to, by libpq's rules.  Raises MalformedValue."""
    settings = _parse(dsn)
    return str(settings.get("dbname") or settings.get("user") or "postgres")


def in_database(dsn: str, *, user: str, database: str) -> str:
    """Return the conninfo of the same server with this user and database.  Raises MalformedValue."""
    return make_conninfo("", **{**_parse(dsn), "user": user, "dbname": database})


def _parse(dsn: str) -> dict[str, str | int | None]:
    try:
        return dict(conninfo_to_dict(dsn))
    except psycopg.Error as cause:
        raise MalformedValue(f"not a connection string: {cause}") from cause
