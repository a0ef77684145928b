"""The daemon's heart: a thread that commits a message whenever the database has been idle for so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cli.looking import look_and_go_on
from pitr.errors import ServerUnavailable
from pitr.postgres.heartbeat import Heartbeat

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from pitr.postgres.address import ServerAddress

STOP_S: Final = 15.0
RETRY_S: Final = 5.0


class HeartbeatKeeper:
    """Beats every ``every_s`` until stopped; trouble is logged when it begins and when it ends."""

    def __init__(
        self,
        address: ServerAddress,
        every_s: float,
        log: FilteringBoundLogger,
        count: Callable[[str], None],
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._address = address
        self._every_s = every_s
        self._retry_s = retry_s
        self._log = log
        self._count = count
        self._is_away = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon; a beat that hangs in a call is left behind."""
        self._stopping.set()
        self._thread.join(STOP_S)

    def _beat_until_stopped(self) -> None:
        while not self._stopping.is_set():
            look_and_go_on("the heartbeat", self._beat, self._log.error)
            # A server that is away is not asked again each second.
            self._stopping.wait(max(self._every_s, self._retry_s))

    def _beat(self) -> None:
        """Beat until stopped, or until the server is away."""
        try:
            with Heartbeat(self._address.session()) as heart:
                while not self._stopping.wait(self._every_s):
                    if heart.beat():
                        self._count("heartbeat")
                    self._told(is_away=False)
        except ServerUnavailable as cause:
            self._told(is_away=True, reason=f"{cause.message}: {cause.detail}")

    def _told(self, *, is_away: bool, reason: str = "") -> None:
        if is_away and not self._is_away:
            self._log.warning("no heartbeat", reason=reason)
        elif self._is_away and not is_away:
            self._log.info("the heartbeat goes on")
        self._is_away = is_away
