"""A load that runs all through a drill: clients that try again and again, before there is a service, too.

Each client makes at most one request in ``pace_s``, and waits for its answer.  Not here: what a request is
(``pitr.postgres.load_client``), and what the figures mean (``verifiers.load_figures``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from verifiers.load_figures import WRITTEN, Histogram, LoadTally, Stretch

PACE_S: Final = 0.05
CLIENTS_MAX: Final = 64
NO_SERVICE: Final = "no service"
"""There was no address to connect to yet."""
_END_S: Final = 30.0


class Requester(Protocol):
    """One client; see ``pitr.postgres.load_client``."""

    def request(self, dsn: str) -> str | None:
        """Return None for an answered write, or the class of what was wrong."""

    def close(self) -> None:
        """End the connection."""


class ClientLoad:
    """Threads of clients.  Its methods may be called from any thread; ``stop`` may be repeated."""

    def __init__(
        self,
        clients: int,
        make_client: Callable[[], Requester],
        *,
        pace_s: float = PACE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        assert 1 <= clients <= CLIENTS_MAX, "the scenario was checked"
        self._make_client = make_client
        self._pace_s = pace_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._dsn: str | None = None
        self._begun = 0.0
        self._tally = LoadTally(clients)
        self._threads = [
            threading.Thread(target=self._run, name=f"load-{number + 1}", daemon=True)
            for number in range(clients)
        ]

    def start(self, begun: float) -> None:
        """Begin; ``begun`` is the moment of the failure, by the monotonic clock."""
        self._begun = begun
        for thread in self._threads:
            thread.start()

    def serve_at(self, dsn: str) -> None:
        """Say where the service is now."""
        with self._lock:
            self._dsn = dsn

    def run_for(self, duration_s: float, wait: Callable[[float], object]) -> Stretch:
        """Let it run on, and return what it did meanwhile.  ``wait`` may end early or raise."""
        with self._lock:
            before = (self._tally.requests, self._tally.errors.total())
        wait(duration_s)
        with self._lock:
            return Stretch(self._tally.requests - before[0], self._tally.errors.total() - before[1])

    def stop(self) -> None:
        """End all clients, and wait for them a bounded time."""
        self._stopping.set()
        deadline = time.monotonic() + _END_S
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def fields(self, before: Histogram | None = None) -> dict[str, Any]:
        """Return the report's group ``degradation``."""
        with self._lock:
            return self._tally.fields(before)

    def _run(self) -> None:
        client = self._make_client()
        try:
            while not self._stopping.is_set():
                begun = self._monotonic()
                outcome = self._request(client)
                ended = self._monotonic()
                with self._lock:
                    self._tally.add(outcome, begun - self._begun, ended - self._begun)
                self._stopping.wait(max(0.0, self._pace_s - (ended - begun)))
        finally:
            client.close()

    def _request(self, client: Requester) -> str:
        with self._lock:
            dsn = self._dsn
        if dsn is None:
            return NO_SERVICE
        return client.request(dsn) or WRITTEN
