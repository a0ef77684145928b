"""A Kafka broker that is played over a socket: it answers what it is told to, with errors as well.

Only what the tests of groups ask for, in old versions of the protocol, which librdkafka takes from a broker
that has no others.  Reference: Apache Kafka, protocol guide.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field

from fix_ports import HOST

LIST_OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR = 2, 3, 8, 9, 10
JOIN_GROUP, HEARTBEAT, LEAVE_GROUP, SYNC_GROUP, DESCRIBE_GROUPS, API_VERSIONS = 11, 12, 13, 14, 15, 18
VERSIONS = {
    LIST_OFFSETS: (0, 2),
    METADATA: (0, 4),
    OFFSET_COMMIT: (0, 2),
    OFFSET_FETCH: (0, 5),
    FIND_COORDINATOR: (0, 1),
    JOIN_GROUP: (0, 0),
    HEARTBEAT: (0, 0),
    LEAVE_GROUP: (0, 0),
    SYNC_GROUP: (0, 0),
    DESCRIBE_GROUPS: (0, 0),
    API_VERSIONS: (0, 0),
}
UNSUPPORTED_VERSION = 35
NOT_COORDINATOR = 16
GROUP_AUTHORIZATION_FAILED = 30


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def whole(self, form: str) -> int:
        (value,) = struct.unpack_from(f">{form}", self._content, self._at)
        self._at += struct.calcsize(f">{form}")
        return int(value)

    def text(self) -> str:
        size = self.whole("h")
        found = self._content[self._at : self._at + max(size, 0)]
        self._at += max(size, 0)
        return found.decode()


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


@dataclass
class PlayedKafka:
    """One broker with one topic; ``errors`` are what the next answers of an API say, one after another."""

    topic: str = "orders"
    partitions: int = 3
    stands: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    errors: dict[int, deque[int]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def __enter__(self) -> PlayedKafka:
        self._server = socket.create_server((HOST, 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        # A client that ends resets its connection where an answer was still on its way.
        with contextlib.suppress(OSError), link, link.makefile("rb") as file:
            while len(size := file.read(4)) == 4:
                request = _Reader(file.read(struct.unpack(">i", size)[0]))
                api, version, correlation = request.whole("h"), request.whole("h"), request.whole("i")
                request.text()  # the client's id
                self.asked.append(api)
                body = struct.pack(">i", correlation) + self._answer(api, version, request)
                link.sendall(struct.pack(">i", len(body)) + body)

    def _error(self, api: int) -> int:
        waiting = self.errors.get(api)
        return waiting.popleft() if waiting else 0

    def _answer(self, api: int, version: int, request: _Reader) -> bytes:
        if api == API_VERSIONS:
            error = UNSUPPORTED_VERSION if version > 0 else 0
            each = b"".join(struct.pack(">hhh", key, *versions) for key, versions in VERSIONS.items())
            return struct.pack(">hi", error, len(VERSIONS)) + each
        answers = {
            METADATA: self._metadata,
            FIND_COORDINATOR: self._coordinator,
            DESCRIBE_GROUPS: self._describe,
            OFFSET_FETCH: self._fetch,
            OFFSET_COMMIT: self._commit,
            LIST_OFFSETS: self._list,
        }
        return answers[api](version, request)

    def _metadata(self, version: int, _request: _Reader) -> bytes:
        brokers = struct.pack(">ii", 1, 1) + _text(HOST) + struct.pack(">ih", self.port, -1)
        parts = b"".join(
            struct.pack(">hii", 0, number, 1) + struct.pack(">iiii", 1, 1, 1, 1)
            for number in range(self.partitions)
        )
        topics = struct.pack(">ih", 1, 0) + _text(self.topic) + b"\x00" + struct.pack(">i", self.partitions)
        assert version == 4, version
        return struct.pack(">i", 0) + brokers + _text("played") + struct.pack(">i", 1) + topics + parts

    def _coordinator(self, version: int, _request: _Reader) -> bytes:
        error = self._error(FIND_COORDINATOR)
        assert version == 1, version
        place = struct.pack(">i", 1) + _text(HOST) + struct.pack(">i", self.port)
        return struct.pack(">ihh", 0, error, -1) + place

    def _describe(self, _version: int, request: _Reader) -> bytes:
        request.whole("i")
        name = request.text()
        state = _text(name) + _text("Empty") + _text("consumer") + _text("")
        return struct.pack(">ih", 1, self._error(DESCRIBE_GROUPS)) + state + struct.pack(">i", 0)

    def _fetch(self, version: int, _request: _Reader) -> bytes:
        error = self._error(OFFSET_FETCH)
        assert version == 5, version
        count = 0 if error else self.partitions
        parts = b"".join(
            struct.pack(">iqi", number, self.stands.get(number, -1), -1) + _text("") + struct.pack(">h", 0)
            for number in range(count)
        )
        topics = struct.pack(">i", 1) + _text(self.topic) + struct.pack(">i", count) + parts
        return struct.pack(">i", 0) + topics + struct.pack(">h", error)

    def _commit(self, version: int, request: _Reader) -> bytes:
        assert version == 2, version
        error = self._error(OFFSET_COMMIT)
        request.text(), request.whole("i"), request.text(), request.whole("q")
        found = struct.pack(">i", request.whole("i"))
        name, count = request.text(), request.whole("i")
        found += _text(name) + struct.pack(">i", count)
        for _ in range(count):
            number, offset = request.whole("i"), request.whole("q")
            request.text()
            if not error:
                self.stands[number] = offset
            found += struct.pack(">ih", number, error)
        return found

    def _list(self, version: int, request: _Reader) -> bytes:
        request.whole("i")
        if version >= 2:
            request.whole("b")
        found = (
            struct.pack(">ii", 0, request.whole("i"))
            if version >= 2
            else struct.pack(">i", request.whole("i"))
        )
        name, count = request.text(), request.whole("i")
        found += _text(name) + struct.pack(">i", count)
        for _ in range(count):
            number, when = request.whole("i"), request.whole("q")
            error = self._error(LIST_OFFSETS)
            offset = 0 if when == -2 else self.ends.get(number, 0)
            found += struct.pack(">ihqq", number, error, -1, -1 if error else offset)
        return found
