"""Watches the server while a base backup is taken, and pauses the copying while it suffers.

A thread with a session of its own looks once a second.  *Lag* is that of the standbys that replay
(``pg_stat_replication``): in bytes, and in seconds since the server had what the standby has not replayed.
*Latency* is what a client feels: the time of a commit of our own, an empty logical message of some tens of
bytes, with the server's own ``synchronous_commit``.  Waits in ``pg_stat_activity`` say how many wait and not
how long, and a SELECT waits for no disk.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Final

from pitr.backup_pace import Pace
from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.server import Server
from pitr.postgres.server_strain import ServerStrain
from pitr.strain import Look, StandbyPosition, StrainBounds, StrainJudge

LOOK_EVERY_S: Final = 1.0
# A look that takes longer than this says enough.
_LOOK_TIMEOUT_S: Final = 10.0


class StrainWatch:
    """The thread.  ``note`` is told, once each, what cannot be seen."""

    def __init__(
        self,
        dsn: str,
        bounds: StrainBounds,
        pace: Pace,
        note: Callable[[str], None],
        *,
        monotonic: Callable[[], float],
    ) -> None:
        self._dsn = dsn
        self._bounds = bounds
        self._pace = pace
        self._note = note
        self._monotonic = monotonic
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backup-strain", daemon=True)

    def start(self) -> None:
        """Begin to watch, if any bound is set."""
        if self._bounds.are_set:
            self._thread.start()

    def stop(self) -> None:
        """End, and let the copying go on.  May be repeated."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._watch(StrainJudge(self._bounds))
        finally:
            # Whatever ends the watch, nobody would end the pause.
            self._pace.set_pause(None)

    def _watch(self, judge: StrainJudge) -> None:
        while not self._ending.is_set():
            try:
                # The end need not wait for a commit that hangs.
                with (
                    Server.connect(self._dsn, statement_timeout_s=_LOOK_TIMEOUT_S) as server,
                    server.interrupted_by(self._ending),
                ):
                    strain = ServerStrain(server)
                    while not self._ending.is_set():
                        self._pace.set_pause(judge.judge(self._look(server, strain)))
                        self._ending.wait(LOOK_EVERY_S)
            except ServerUnavailable as cause:
                # A lost session also ends the backup, whose own session is asked by others.
                self._note(f"the server's strain was not seen for a while: {cause.message}")
                self._pace.set_pause(None)
                self._ending.wait(LOOK_EVERY_S)
            except ServerRefused as cause:
                self._note(f"copying does not pause: the server's strain cannot be seen: {cause.message}")
                return

    def _look(self, server: Server, strain: ServerStrain) -> Look:
        latency_s = None
        if self._bounds.latency_s is not None:
            latency_s = self._time_commit(server, strain, 2 * self._bounds.latency_s + 1)
            if latency_s is None:
                self._note("commit latency cannot be measured on a standby; pause_latency is not heeded")
        if not self._bounds.need_lag:
            return Look(self._monotonic(), latency_s=latency_s)
        lag = strain.standbys()
        if lag.is_hidden:
            self._note("the lag of standbys is hidden from this role; GRANT pg_monitor to it for pause_lag")
        standbys = tuple(StandbyPosition(each.name, each.replayed) for each in lag.standbys)
        return Look(self._monotonic(), lag.server_end, standbys, latency_s)

    def _time_commit(self, server: Server, strain: ServerStrain, give_up_s: float) -> float | None:
        """Return how long a commit takes, more than ``give_up_s`` if it was given up; None on a standby.

        A commit that waits for a synchronous standby heeds no statement_timeout; a cancel ends its wait.
        """

        def interrupt() -> None:
            with contextlib.suppress(ServerRefused, ServerUnavailable):
                server.interrupt()

        timer = threading.Timer(give_up_s, interrupt)
        timer.daemon = True
        begun_s = self._monotonic()
        timer.start()
        try:
            can_commit = strain.commit()
            return self._monotonic() - begun_s if can_commit else None
        except ServerUnavailable:
            if self._monotonic() - begun_s < give_up_s:
                raise
            return self._monotonic() - begun_s
        finally:
            timer.cancel()
            timer.join()
