"""The address of a Patroni cluster's leader: looked up for each connection, and watched while it lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

from pitr.errors import ServerUnavailable
from pitr.postgres.address import Endpoint, at_endpoint
from pitr.postgres.patroni import Leader, PatroniMembers

POLL_EVERY_S: Final = 3.0
_STOP_S: Final = 10.0


class LeaderAddress:
    """A ``ServerAddress``: the conninfo of the configuration, with the leader's host and port.

    ``start`` begins to look who leads every ``poll_every_s``; ``on_moved`` is called when it is another one
    than WAL is streamed from.  While nobody leads, the connection that there is stays.
    """

    def __init__(self, dsn: str, members: PatroniMembers, *, poll_every_s: float = POLL_EVERY_S) -> None:
        self._dsn: Final = dsn
        self._members: Final = members
        self._poll_every_s: Final = poll_every_s
        self._lock = threading.Lock()
        self._streaming: Leader | None = None
        self._moved_to: Leader | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def leads_only(self) -> bool:
        streaming = self.streaming
        return streaming is None or not streaming.is_standby

    def find(self) -> str:
        leader = self.leader()
        with self._lock:
            self._streaming, self._moved_to = leader, None
        return at_endpoint(self._dsn, leader.endpoint)

    def leader(self) -> Leader:
        """Ask who leads.  Raises ServerUnavailable."""
        return self._members.find_leader()

    def permanent_slots(self) -> Mapping[str, str] | None:
        """Return the type of each permanent slot of the cluster; None if no member says."""
        return self._members.permanent_slots()

    @property
    def streaming(self) -> Leader | None:
        """The leader that ``find`` gave last."""
        with self._lock:
            return self._streaming

    def note_connected(self, endpoint: Endpoint) -> None:  # noqa: ARG002
        return

    def session(self) -> str:
        return at_endpoint(self._dsn, (self.streaming or self.leader()).endpoint)

    def check(self) -> None:
        moved_to = self._moved_to  # one reference: it is read for each message
        if moved_to is not None:
            raise ServerUnavailable(f"{moved_to.name} leads now, at {moved_to.endpoint}")

    def start(self, on_moved: Callable[[], None]) -> None:
        """Look who leads from now on, in a thread of its own."""
        self._thread = threading.Thread(
            target=self._watch, args=(on_moved,), name="patroni-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End to look."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _watch(self, on_moved: Callable[[], None]) -> None:
        while not self._stopping.wait(self._poll_every_s):
            try:
                leader = self.leader()
            except ServerUnavailable:
                continue  # during a failover nobody leads; whoever connects then is told so
            with self._lock:
                streaming = self._streaming
                has_moved = streaming is not None and streaming.endpoint != leader.endpoint
                self._moved_to = leader if has_moved else None
            if has_moved:
                on_moved()
