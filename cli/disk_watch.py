"""The daemon's look at the disk of ``pg_wal``: how long it lasts; the slot is given up if it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cli.snapshot import WalDiskSnapshot
from pitr.backup_checks import runs_here
from pitr.disk_forecast import DiskForecaster, DiskSample, DropPolicy, Forecast, why_drop
from pitr.errors import PitrError
from pitr.postgres.server import Server
from pitr.postgres.slot_watch import DiskSpace, SlotWatch, wal_disk_space, watch_slot

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

STATEMENT_TIMEOUT_S: Final = 10.0
# Said once when it comes so near, and again after it was further away.
WARN_BEFORE_S: Final = 4 * 3600.0
# After the slot was given up the server needs a checkpoint to make room.
_PAUSE_S: Final = 120.0


class DiskWatch:
    """Looks when asked.  Not thread-safe.  ``sees_disk`` False: the server's disk is not this host's.

    ``session`` returns the conninfo of the server that WAL is streamed from now.
    """

    def __init__(
        self,
        session: Callable[[], str],
        slot: str,
        policy: DropPolicy,
        *,
        sees_disk: bool,
        give_up: Callable[[str], None],
        log: FilteringBoundLogger,
        monotonic: Callable[[], float],
    ) -> None:
        self._session: Final = session
        self._slot: Final = slot
        self._policy: Final = policy
        self._sees_disk: Final = sees_disk
        self._give_up: Final = give_up
        self._log: Final = log
        self._monotonic: Final = monotonic
        self._forecaster = DiskForecaster()
        self._seen_at: str | None = None
        self._given_up_s = float("-inf")
        self._has_warned = False

    def look(self) -> WalDiskSnapshot | None:
        """Return how the disk does; None if the server cannot be asked now."""
        try:
            session = self._session()
            with Server.connect(session, statement_timeout_s=STATEMENT_TIMEOUT_S) as server:
                seen = watch_slot(server, self._slot)
                space = self._space(server, seen)
        except PitrError as error:
            self._log.debug("the slot's disk cannot be looked at", reason=str(error))
            return None
        if session != self._seen_at:
            # Another server's slot, and another disk: what grew on the last one foretells nothing here.
            self._seen_at, self._forecaster = session, DiskForecaster()
        sample = DiskSample(
            self._monotonic(),
            seen.end,
            seen.kept_bytes,
            seen.droppable_bytes,
            None if space is None else space.free_bytes,
            seen.spare_bytes,
        )
        forecast = self._forecaster.add(sample)
        self._warn(forecast)
        self._drop(sample, forecast)
        return _snapshot(seen, space, forecast, self._policy)

    def _space(self, server: Server, seen: SlotWatch) -> DiskSpace | None:
        """Return the disk's space where it is that server's: a slot must not go for another host's disk."""
        if not self._sees_disk or seen.data_directory is None or not runs_here(server, seen.data_directory):
            return None
        return wal_disk_space(seen.data_directory)

    def _warn(self, forecast: Forecast) -> None:
        nearest_s = min(
            (one for one in (forecast.full_in_s, forecast.slot_lost_in_s) if one is not None), default=None
        )
        is_near = nearest_s is not None and nearest_s < WARN_BEFORE_S
        if is_near and not self._has_warned:
            self._log.error(
                "the slot's WAL fills the server's disk, or its own bound",
                full_in_s=_rounded(forecast.full_in_s),
                slot_lost_in_s=_rounded(forecast.slot_lost_in_s),
            )
        self._has_warned = is_near

    def _drop(self, sample: DiskSample, forecast: Forecast) -> None:
        reason = why_drop(self._policy, sample, forecast)
        if reason is None or sample.at_s - self._given_up_s < _PAUSE_S:
            return
        try:
            self._give_up(reason)
        except PitrError as error:
            self._log.error("the slot could not be given up", reason=str(error))
            return
        self._given_up_s = sample.at_s


def _rounded(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _snapshot(
    seen: SlotWatch, space: DiskSpace | None, forecast: Forecast, policy: DropPolicy
) -> WalDiskSnapshot:
    return WalDiskSnapshot(
        slot_status=seen.status,
        slot_spare_bytes=seen.spare_bytes,
        wal_directory_bytes=seen.wal_directory_bytes,
        free_bytes=None if space is None else space.free_bytes,
        total_bytes=None if space is None else space.total_bytes,
        growth_rate=forecast.growth_rate,
        full_in_s=forecast.full_in_s,
        slot_lost_in_s=forecast.slot_lost_in_s,
        when_disk_fills="drop" if policy.drops else "keep",
    )
