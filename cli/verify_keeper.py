"""The daemon's weekly verification: a process of its own, so that it can neither block nor kill archiving."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final

from cli.errors import ExitCode
from cli.own_command import own_command
from cli.settings import Settings
from cli.timetable import Task
from cli.verify_log import verifier_key
from pitr.errors import PitrError
from storage.store import StoreError
from verifiers.log_reader import read_log
from verifiers.verify_schedule import last_scheduled_at

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from pitr.layout import ArchiveId
    from storage.replicated import ReplicatedStore

VERIFY_TASK: Final = "verification"
_POLL_S: Final = 0.5
# Told to end it stops a server and removes what it restored.
_END_S: Final = 120.0
_OUTPUT_BYTES_MAX: Final = 16 << 20
# Before the first backup nothing can be verified; what fails for long is tried a few times a day.
_RETRY_FIRST_S: Final = 30.0
_RETRY_MAX_S: Final = 6 * 3600.0
# A verdict was reached and signed, whatever it is.
_JUDGED: Final = (ExitCode.OK, ExitCode.NOT_VERIFIED)


class VerifyKeeper:
    """Runs it when it is due, one after the other.  Its methods may be called from any thread."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        self._settings = settings
        self._log = log
        self._last: datetime | None = None

    def tasks(self) -> list[Task]:
        """Return the task for the timetable; none where the configuration wants none."""
        config = self._settings.verify
        if config is None or config.every_s is None:
            return []
        deadline_s = config.deadline_s + _END_S
        return [
            Task(
                VERIFY_TASK,
                config.every_s,
                deadline_s,
                self.run,
                lambda: self._last,
                retry_first_s=_RETRY_FIRST_S,
                retry_max_s=_RETRY_MAX_S,
            )
        ]

    def learn(self, store: ReplicatedStore, archive: ArchiveId) -> None:
        """Read in the log when the last one was to be; what cannot be known is asked again by the run."""
        config = self._settings.verify
        if config is None or config.every_s is None:
            self._log.info("no restore is verified by itself: the configuration has no [verify]")
            return
        try:
            public = verifier_key(config).public
            state = read_log(store, self._settings.repository.repository, public)
            self._last = last_scheduled_at(state.entries, archive.system_identifier)
        except (PitrError, StoreError) as error:
            self._log.warning("the log of verifications cannot be read", reason=str(error))

    def run(self, cancel: threading.Event) -> None:
        """Verify, in a process of its own.  Raises PitrError if it came to no verdict."""
        words = ["-c", str(self._settings.path), "--json", "--progress", "none", "verify", "--scheduled"]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*own_command(), *words], stdin=subprocess.DEVNULL, stdout=output, stderr=said
            )
            try:
                while process.poll() is None and not cancel.wait(_POLL_S):
                    pass
            finally:
                _end(process)
            answer = _read(output)
        self._tell(process.returncode, answer)

    def _tell(self, exit_code: int, answer: Mapping[str, Any]) -> None:
        data, error = answer.get("data") or {}, answer.get("error") or {}
        if exit_code not in _JUDGED or (data.get("verdict") is None and not data.get("is_not_due")):
            text = "; ".join(filter(None, (error.get("message"), error.get("why"))))
            raise PitrError(f"the verification came to no verdict: {text or f'exit code {exit_code}'}")
        if data.get("is_not_due"):
            return
        facts = {
            "verdict": data["verdict"],
            "report": data["report"],
            "number": data["number"],
            "recovery_time_ms": data["recovery_time_ms"],
        }
        failed = [check["id"] for check in data["checks"] if check["result"] == "FAILED"]
        if data["verdict"] == "FAILED":
            self._log.error("a restore did not prove right", failed=failed, **facts)
        elif data["verdict"] == "WARNED":
            self._log.warning("a restore was verified, and the proof is not complete", **facts)
        else:
            self._log.info("a restore was verified", **facts)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it clean up; kill it if it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_END_S)


def _read(output: IO[bytes]) -> Mapping[str, Any]:
    output.seek(0)
    try:
        found = json.loads(output.read(_OUTPUT_BYTES_MAX))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
