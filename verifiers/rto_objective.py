"""Whether a backup is taken earlier so that recovery stays within its objective.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from verifiers.rto_model import RtoModel, Work

# What an incremental costs the server, it may cost so often at most.
INTERVAL_MIN_S: Final = 900.0
# It must shorten recovery by so much of what it takes; else the files alone are too many.
_GAIN_MIN: Final = 0.1
# A new backup is followed by a little WAL all the same.
_WAL_AFTER_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: ``takes_backup`` now, and why; or why not, where a person should know, else None."""

    takes_backup: bool
    reason: str | None


def judge_objective(
    model: RtoModel | None, work: Work, objective_s: float, *, last_backup_at: datetime, now: datetime
) -> Verdict:
    """Decide.  ``work`` is what recovery to the latest moment has to do; ``last_backup_at``: begun then."""
    if model is None:
        return Verdict(False, None)
    seconds = model.forecast(work).seconds
    if seconds <= objective_s:
        return Verdict(False, None)
    over = (
        f"recovery to the latest moment is forecast to take {seconds:.0f} s,"
        f" over the {objective_s:.0f} s of rto_objective"
    )
    least = Work(work.size_bytes, work.files, min(work.wal_bytes, _WAL_AFTER_BYTES))
    without_wal_s = model.forecast(least).seconds
    if seconds - without_wal_s < _GAIN_MIN * seconds:
        return Verdict(False, f"{over}; a backup would not help: {without_wal_s:.0f} s are for the files")
    if now - last_backup_at < timedelta(seconds=INTERVAL_MIN_S):
        return Verdict(False, None)
    share = f"{seconds - without_wal_s:.0f} s of it for {work.wal_bytes >> 20} MiB of WAL"
    return Verdict(True, f"{over}, {share}")
