"""Patroni's REST interface, as far as it says who leads: asked with deadlines, and bounded in what is read.

It tells where a server is and that it holds the lock; whose WAL it has, the replication connection tells.

Reference: Patroni documentation, "Patroni REST API": GET /primary, GET /standby-leader, GET /cluster.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pitr.errors import MalformedValue, ServerUnavailable
from pitr.postgres.address import Endpoint
from pitr.wal.timeline import TimelineId

# The description of a cluster of a hundred members has 30 kB.
ANSWER_BYTES_MAX: Final = 1 << 20
DEADLINE_S: Final = 3.0
_NAME_CHARACTERS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class PatroniTls:
    """Whom to trust behind an https URL, and who we are there; None: the system's, and nobody."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Leader:
    """The member that says that it holds the lock.  ``timeline`` None: it does not say.

    ``is_standby``: it leads a standby cluster, so its server follows a primary elsewhere.
    """

    name: str
    endpoint: Endpoint
    timeline: TimelineId | None
    system_identifier: int | None
    is_standby: bool = False


class PatroniMembers:
    """The members' REST addresses.  Thread-safe.

    Raises MalformedValue for a URL that is none, OSError for TLS files that cannot be read.
    """

    def __init__(
        self, urls: Sequence[str], tls: PatroniTls = PatroniTls(), *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._places: Final = tuple(parse_url(url) for url in urls)
        self._deadline_s: Final = deadline_s
        is_https = any(place.is_https for place in self._places)
        self._context: Final = _context(tls) if is_https else None

    def find_leader(self) -> Leader:
        """Ask all members at once, and return the one that holds the lock.

        Raises ServerUnavailable with each member's answer if none does, or if two say so.
        """
        with ThreadPoolExecutor(len(self._places), "patroni") as asking:
            answers = list(asking.map(self._ask, self._places))
        leaders = {one.endpoint: one for one in answers if isinstance(one, Leader)}
        if not leaders:
            told = "; ".join(
                f"{place}: {answer}" for place, answer in zip(self._places, answers, strict=True)
            )
            raise ServerUnavailable("no member of the Patroni cluster says that it leads", detail=told)
        # One that is cut off may hold itself for the leader a while yet; who took over has a new timeline.
        timelines = sorted(0 if one.timeline is None else one.timeline.number for one in leaders.values())
        if len(timelines) > 1 and timelines[-1] == timelines[-2]:
            names = " and ".join(sorted(one.name for one in leaders.values()))
            raise ServerUnavailable(f"{names} both say that they hold Patroni's lock")
        return max(leaders.values(), key=lambda one: 0 if one.timeline is None else one.timeline.number)

    def permanent_slots(self) -> Mapping[str, str] | None:
        """Return the type of each permanent slot that the cluster declares; None if no member says.

        Patroni makes these on every member.
        """
        for place in self._places:
            with suppress(MalformedValue, OSError, http.client.HTTPException):
                status, body = self._get(place, "config")
                if status == 200:
                    return declared_slots(decode_object(body))
        return None

    def _ask(self, place: _Place) -> Leader | str:
        """Return the leader if this member is it, else why not."""
        try:
            status, body = self._get(place, "primary")
            if is_standby := status != 200:
                # The lock of a standby cluster, and a server that is to stay a standby; a member with the
                # lock that is not promoted yet is neither this nor the primary.
                leads, leader_body = self._get(place, "standby-leader")
                if leads != 200:
                    return f"not the primary ({status})"
                body = leader_body
            leader = decode_object(body)
            name = member_name(leader)
            status, body = self._get(place, "cluster")
            if status != 200:
                return f"/cluster answers {status}"
            endpoint = member_endpoint(decode_object(body), name)
            return Leader(name, endpoint, _timeline(leader), _identifier(leader), is_standby)
        except MalformedValue as refused:
            return refused.message
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__

    def _get(self, place: _Place, what: str) -> tuple[int, bytes]:
        """GET within the deadline, whatever the other side does; follows no redirection and no proxy."""
        connection: http.client.HTTPConnection
        if place.is_https:
            connection = http.client.HTTPSConnection(
                place.host, place.port, timeout=self._deadline_s, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(place.host, place.port, timeout=self._deadline_s)
        # A timeout of the socket begins anew with each byte.
        ending = threading.Timer(self._deadline_s, lambda: _shut(connection))
        ending.daemon = True
        ending.start()
        try:
            connection.request(
                "GET", f"{place.path}/{what}", headers={"Accept": "application/json", "Connection": "close"}
            )
            answer = connection.getresponse()
            body = answer.read(ANSWER_BYTES_MAX + 1)
        finally:
            ending.cancel()
            connection.close()
        if len(body) > ANSWER_BYTES_MAX:
            raise MalformedValue(f"/{what} answers with more than {ANSWER_BYTES_MAX} bytes")
        return answer.status, body


@dataclass(frozen=True, slots=True)
class _Place:
    is_https: bool
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_url(text: str) -> _Place:
    """Read ``http://HOST:PORT`` or ``https://…``; a user or a query has no place in it."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as cause:
        raise MalformedValue(f"not a URL of Patroni's REST interface: {text!r}") from cause
    is_plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in {"http", "https"} or not host or not is_plain:
        raise MalformedValue(f"not a URL of Patroni's REST interface: {text!r}", hint="http://HOST:8008")
    return _Place(parts.scheme == "https", host, port or 8008, parts.path.rstrip("/"))


def decode_object(body: bytes) -> Mapping[str, Any]:
    """Read an answer.  Raises MalformedValue."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as cause:
        raise MalformedValue("the answer is not JSON") from cause
    if not isinstance(found, dict):
        raise MalformedValue("the answer is no JSON object")
    return found


def member_name(leader: Mapping[str, Any]) -> str:
    """Return the name of the member that answered /primary or /standby-leader."""
    patroni = leader.get("patroni")
    name = patroni.get("name") if isinstance(patroni, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS_MAX:
        raise MalformedValue("the member does not say its name")
    return name


def member_endpoint(cluster: Mapping[str, Any], name: str) -> Endpoint:
    """Return where the server of a member is, as /cluster tells it."""
    members = cluster.get("members")
    for member in members if isinstance(members, list) else []:
        if not isinstance(member, dict) or member.get("name") != name:
            continue
        host, port = member.get("host"), member.get("port")
        # libpq would take a comma for a list of hosts, and a slash for a socket's directory.
        is_host = (
            isinstance(host, str) and 0 < len(host) <= _NAME_CHARACTERS_MAX and not set(host) & set(",/")
        )
        if is_host and isinstance(port, int) and 0 < port < 65_536:
            return Endpoint(str(host), str(port))
    raise MalformedValue("/cluster does not say where the leader's server is")


def declared_slots(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the name and type of the slots in the cluster's dynamic configuration."""
    slots = config.get("slots")
    return {
        str(name): str(slot.get("type"))
        for name, slot in (slots.items() if isinstance(slots, dict) else ())
        if isinstance(slot, dict)
    }


def _timeline(leader: Mapping[str, Any]) -> TimelineId | None:
    number = leader.get("timeline")
    return TimelineId(number) if isinstance(number, int) and 0 < number < 1 << 32 else None


def _identifier(leader: Mapping[str, Any]) -> int | None:
    text = leader.get("database_system_identifier")
    return (
        int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 21 else None
    )


def _context(tls: PatroniTls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if tls.ca_file is None else str(tls.ca_file))
    if tls.certificate_file is not None:
        context.load_cert_chain(tls.certificate_file, tls.key_file)
    return context


def _shut(connection: http.client.HTTPConnection) -> None:
    found = connection.sock
    if found is not None:
        with suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)
