"""What the control socket can ask of a daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cli.control import ControlRequest
from pitr.errors import MalformedValue

if TYPE_CHECKING:
    from cli.daemon_core import Daemon
    from pitr.backup_copy import BackupProgress

DEFAULT_LABEL = "asked for"
LABEL_CHARS_MAX = 200


class Verbs:
    """Carries requests out; see ``cli.control_server.ControlHandler``."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def __call__(
        self, request: ControlRequest, progress: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        if request.verb == "status":
            return self._daemon.state.snapshot().to_fields()
        if request.verb == "backup":
            return self._backup(request.options, progress)
        if request.verb == "repair":
            return self._repair()
        self._daemon.ask_to_stop("the control socket")
        return {"is_stopping": True}

    def _backup(
        self, options: Mapping[str, Any], progress: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        from cli.backups import backup_fields

        label = options.get("label", DEFAULT_LABEL)
        if not isinstance(label, str) or not 0 < len(label) <= LABEL_CHARS_MAX or not label.isprintable():
            raise MalformedValue(f"a label has 1 to {LABEL_CHARS_MAX} printable characters")

        def look(seen: BackupProgress | None) -> None:
            if seen is None:
                progress({"step": "starting"})
            else:
                total = seen.bytes_listed if seen.is_listed else None
                progress({"step": seen.phase, "bytes": seen.bytes_done, "total_bytes": total})

        outcome = self._daemon.back_up(label, look)
        if outcome.failure is not None:
            raise outcome.failure
        assert outcome.manifest is not None
        lagging = self._daemon.lagging_regions()
        return {
            "backup": backup_fields(outcome.manifest),
            "duration_s": round(outcome.duration_s, 3),
            "lagging_regions": lagging,
        }

    def _repair(self) -> Mapping[str, Any]:
        found = self._daemon.store.reconcile()
        return {
            "objects": found.objects,
            "missing_copies": found.missing_copies,
            "unreached": list(found.unreached),
        }
