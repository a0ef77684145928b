"""What the control socket can ask of a daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.backups import backup_fields
from cli.control import ControlRequest
from cli.lagging import lagging_regions
from cli.units import RATE_MAX, RATE_MIN
from pitr.backup_pace import PaceLimits
from pitr.errors import MalformedValue

if TYPE_CHECKING:
    from cli.backup_runner import BackupOutcome
    from cli.daemon_core import Daemon
    from pitr.backup_tally import BackupProgress

DEFAULT_LABEL = "asked for"
LABEL_CHARS_MAX = 200
NEED_THE_ARCHIVE = frozenset({"backup", "repair", "fence"})


class Verbs:
    """Carries requests out; see ``cli.control_server.ControlHandler``."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def __call__(
        self, request: ControlRequest, progress: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        beginning = self._daemon.beginning
        if request.verb == "status":
            return self._daemon.state.snapshot().to_fields() if beginning is None else beginning.to_fields()
        if beginning is not None and request.verb in NEED_THE_ARCHIVE:
            raise beginning.not_ready()
        if request.verb == "backup":
            return self._backup(request.options, progress)
        if request.verb == "repair":
            return self._repair()
        if request.verb == "limit":
            return self._limit(request.options)
        if request.verb == "fence":
            return self._daemon.take_fence()
        self._daemon.ask_to_stop("the control socket")
        return {"is_stopping": True}

    def _backup(
        self, options: Mapping[str, Any], progress: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        label = options.get("label", DEFAULT_LABEL)
        if not isinstance(label, str) or not 0 < len(label) <= LABEL_CHARS_MAX or not label.isprintable():
            raise MalformedValue(f"a label has 1 to {LABEL_CHARS_MAX} printable characters")
        kind = options.get("type", "auto")
        if kind not in ("full", "incr", "auto"):
            raise MalformedValue("the type of a backup is full, incr or auto")
        outcome = self._daemon.back_up(label, kind, lambda seen: progress(progress_fields(seen)))
        return backup_result(outcome, lagging_regions(self._daemon.store))

    def _limit(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Change the limits that are named; return all of them."""
        pace = self._daemon.pace
        rate, workers = options.get("rate", pace.limits.rate), options.get("workers", pace.limits.workers)
        most = self._daemon.workers_max
        is_rate = rate is None or (isinstance(rate, int | float) and not isinstance(rate, bool))
        if set(options) - {"rate", "workers"} or not is_rate:
            raise MalformedValue("a rate is bytes a second, or null")
        if rate is not None and not RATE_MIN <= rate <= RATE_MAX:
            raise MalformedValue("a rate is at least 16 KiB and at most 1024 TiB a second, or null")
        if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= most:
            raise MalformedValue(
                f"workers are from 1 to {most}",
                hint="[backup] workers is how many a backup begins with; over the protocol it is one",
            )
        pace.change(PaceLimits(None if rate is None else float(rate), workers))
        return {"rate_limit": pace.limits.rate, "workers": pace.limits.workers}

    def _repair(self) -> Mapping[str, Any]:
        found = self._daemon.compare_regions()
        return {
            "objects": found.objects,
            "missing_copies": found.missing_copies,
            "unreached": list(found.unreached),
        }


def progress_fields(seen: BackupProgress | None) -> Mapping[str, Any]:
    """Return how far a backup is, for whoever waits for it."""
    if seen is None:
        return {"step": "starting"}
    return {
        "step": seen.phase,
        "paused": seen.paused,
        "bytes": seen.bytes_done,
        "total_bytes": seen.bytes_listed if seen.is_listed else None,
    }


def backup_result(outcome: BackupOutcome, lagging: Sequence[str]) -> Mapping[str, Any]:
    """Return what became of a backup.  Raises what it failed with."""
    if outcome.failure is not None:
        raise outcome.failure
    assert outcome.manifest is not None, "an attempt has a manifest or a failure"
    return {
        "backup": backup_fields(outcome.manifest),
        "duration_s": round(outcome.duration_s, 3),
        "notes": list(outcome.notes),
        "lagging_regions": list(lagging),
    }
