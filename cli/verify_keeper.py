"""The daemon's verifications and drills: processes of their own, which cannot block or kill archiving."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cli.errors import ExitCode
from cli.own_command import own_command
from cli.own_process import END_S, Turn, failure_words, run_own
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
DRILL_TASK: Final = "drill-"
"""Before the kind of a drill, as a task's name."""
# Before the first backup nothing can be verified; what fails for long is tried a few times a day.
_RETRY_FIRST_S: Final = 30.0
_RETRY_MAX_S: Final = 6 * 3600.0
# A verdict was reached and signed, whatever it is.
_JUDGED: Final = (ExitCode.OK, ExitCode.NOT_VERIFIED)


@dataclass(frozen=True, slots=True)
class _Planned:
    """Something that the timetable runs: ``drill`` None is a verification."""

    name: str
    drill: str | None
    every_s: float
    words: tuple[str, ...]


class VerifyKeeper:
    """Runs each when it is due, one after the other.  Its methods may be called from any thread.

    ``command``: the words that start this program.
    """

    def __init__(
        self, settings: Settings, log: FilteringBoundLogger, *, command: Sequence[str] | None = None
    ) -> None:
        self._settings = settings
        self._log = log
        self._command = own_command() if command is None else tuple(command)
        # Two at once would share disk and time, and so measure each other.
        self._turn = Turn()
        self._last: dict[str, datetime | None] = {}
        self._planned = _planned(settings)

    def tasks(self) -> list[Task]:
        """Return the tasks for the timetable; none where the configuration wants none."""
        config = self._settings.verify
        if config is None:
            return []
        return [
            Task(
                one.name,
                one.every_s,
                # Each may have to wait for all the others; its own time is kept below.
                (config.deadline_s + END_S) * (len(self._planned) + 1),
                partial(self._run, one),
                partial(self._last.get, one.name),
                retry_first_s=_RETRY_FIRST_S,
                retry_max_s=_RETRY_MAX_S,
            )
            for one in self._planned
        ]

    def learn(self, store: ReplicatedStore, archive: ArchiveId) -> None:
        """Read in the log when each was to be last; what cannot be known is asked again by the run."""
        config = self._settings.verify
        if config is None or config.every_s is None:
            self._log.info("no restore is verified by itself: the configuration has no [verify]")
        if config is None or not self._planned:
            return
        try:
            public = verifier_key(config).public
            state = read_log(store, self._settings.repository.repository, public)
            for one in self._planned:
                self._last[one.name] = last_scheduled_at(
                    state.entries, archive.system_identifier, drill=one.drill
                )
        except (PitrError, StoreError) as error:
            self._log.warning("the log of verifications cannot be read", reason=str(error))

    def _run(self, planned: _Planned, cancel: threading.Event) -> None:
        """Run it, when nothing else does, in a process of its own.  Raises PitrError without a verdict."""
        with self._turn.taken(_named(planned), cancel):
            self._run_now(planned, cancel)

    def _run_now(self, planned: _Planned, cancel: threading.Event) -> None:
        config = self._settings.verify
        assert config is not None, "it is planned"
        deadline_s = config.deadline_s + END_S
        words = (*planned.words, "--scheduled")
        exit_code, answer = run_own(self._command, self._settings.path, words, deadline_s, cancel)
        self._tell(planned, exit_code, answer)

    def _tell(self, planned: _Planned, exit_code: int, answer: Mapping[str, Any]) -> None:
        data = answer.get("data") or {}
        if exit_code not in _JUDGED or (data.get("verdict") is None and not data.get("is_not_due")):
            raise PitrError(f"{_named(planned)} came to no verdict: {failure_words(exit_code, answer)}")
        if data.get("is_not_due"):
            return
        facts = {
            "verdict": data["verdict"],
            "report": data["report"],
            "number": data["number"],
            "recovery_time_ms": data["recovery_time_ms"],
        }
        failed = [check["id"] for check in data["checks"] if check["result"] == "FAILED"]
        opened = [one["id"] for one in data.get("findings", []) if one["status"] == "open"]
        if opened:
            self._log.warning("a report has findings", findings=opened, **facts)
        if planned.drill is not None:
            tell = {"FAILED": self._log.error, "WARNED": self._log.warning}.get(
                data["verdict"], self._log.info
            )
            tell("a drill was held", drill=planned.drill, failed=failed, **facts)
        elif data["verdict"] == "FAILED":
            self._log.error("a restore did not prove right", failed=failed, **facts)
        elif data["verdict"] == "WARNED":
            self._log.warning("a restore was verified, and the proof is not complete", **facts)
        else:
            self._log.info("a restore was verified", **facts)


def _named(planned: _Planned) -> str:
    return "the verification" if planned.drill is None else f"the drill {planned.drill}"


def _planned(settings: Settings) -> tuple[_Planned, ...]:
    config = settings.verify
    if config is None:
        return ()
    found = [] if config.every_s is None else [_Planned(VERIFY_TASK, None, config.every_s, ("verify",))]
    found += [
        _Planned(f"{DRILL_TASK}{drill}", drill, every_s, ("drill", "start", drill))
        for drill, every_s in config.drills.every_s.items()
        if every_s is not None
    ]
    return tuple(found)
