"""When commits that wait for a daemon are released, and when they wait again.  Pure.

The daemon's own ladder (``pitr.protection``) ends where the daemon does: one that is dead or stuck can lower
nothing.  This decides for a process beside it, from looks at the server alone.  It never acts while the
owner's policy is ``data``, and never twice within a bound: commits that hang and go on by turns are worse
than either.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pitr.protection import Protect
from pitr.wal.lsn import LSN

# How long the daemon must have kept up before commits wait for it again; doubled with each release of the
# last hour, so that one that fails again and again does not take the server down each minute.
HOLD_S: Final = 30.0
HOLD_MAX_S: Final = 960.0
_REMEMBERED_S: Final = 3600.0
# Pieces are cut once a second while nobody waits, and put within some: this is "kept up".
BEHIND_MAX_S: Final = 10.0
_ENDS_MAX: Final = 240
_RELEASES_MAX: Final = 64
# Looks further apart than this prove nothing of what was between them.
_GAP_MAX_S: Final = 60.0


class ReleaseAction(StrEnum):
    """What is to be done now."""

    NONE = "none"
    WARN = "warn"
    RELEASE = "release"
    HOLD_AGAIN = "hold-again"


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """Whether commits are released at all, and after how long of waiting."""

    protect: Protect
    release_after_s: float
    hold_s: float = HOLD_S


@dataclass(frozen=True, slots=True)
class ReleaseLook:
    """What one look at the server showed; ``at_s`` is monotonic.

    ``waiting``: sessions whose commit waits.  ``hangs_without_us``: no one else's acknowledgement is enough.
    ``streams``: a session of the daemon's is sent WAL; ``flushed`` is what it said to be durable.
    ``is_released``: commits do not wait for us because this watchdog has seen to it.
    """

    at_s: float
    waiting: int
    hangs_without_us: bool
    streams: bool
    flushed: LSN | None
    end: LSN
    is_released: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why, in a person's words."""

    action: ReleaseAction
    reason: str = ""


_NOTHING: Final = Decision(ReleaseAction.NONE)


class ReleaseJudge:
    """Decides from look to look.  Not thread-safe.

    After RELEASE or HOLD_AGAIN the next look tells whether it was done; if not, it is asked for again.
    """

    def __init__(self, policy: ReleasePolicy) -> None:
        self._policy: Final = policy
        self._flushed: LSN | None = None
        self._stuck_since_s: float | None = None
        self._good_since_s: float | None = None
        self._looked_s: float | None = None
        self._has_warned = False
        self._was_released = False
        self._changed_s = float("-inf")
        self._ends: deque[tuple[float, LSN]] = deque(maxlen=_ENDS_MAX)
        self._releases: deque[float] = deque(maxlen=_RELEASES_MAX)

    def look(self, seen: ReleaseLook) -> Decision:
        """Return what to do now."""
        if self._looked_s is not None and seen.at_s - self._looked_s > _GAP_MAX_S:
            self.forget()
        self._looked_s = seen.at_s
        if seen.is_released is not self._was_released:
            self._note_change(seen)
        has_moved = seen.flushed is not None and seen.flushed != self._flushed
        self._flushed = seen.flushed if seen.flushed is not None else self._flushed
        self._ends.append((seen.at_s, seen.end))
        return self._released(seen) if seen.is_released else self._held(seen, has_moved=has_moved)

    def forget(self) -> None:
        """Begin anew: the server was away, or is another one.  What was released is remembered."""
        self._stuck_since_s = self._good_since_s = self._flushed = None
        self._has_warned = False
        self._ends.clear()

    @property
    def hold_s(self) -> float:
        """Return how long the daemon must keep up now before commits wait for it again."""
        return float(min(HOLD_MAX_S, self._policy.hold_s * 2 ** max(0, len(self._releases) - 1)))

    def _note_change(self, seen: ReleaseLook) -> None:
        self._was_released, self._changed_s = seen.is_released, seen.at_s
        self._stuck_since_s = self._good_since_s = None
        self._has_warned = False
        while self._releases and seen.at_s - self._releases[0] > _REMEMBERED_S:
            self._releases.popleft()
        if seen.is_released:
            self._releases.append(seen.at_s)

    def _held(self, seen: ReleaseLook, *, has_moved: bool) -> Decision:
        if not (seen.waiting and seen.hangs_without_us) or (seen.streams and has_moved):
            self._stuck_since_s = None
            self._has_warned = False
            return _NOTHING
        if self._stuck_since_s is None:
            self._stuck_since_s = seen.at_s
        waited_s = seen.at_s - self._stuck_since_s
        since_s = min(waited_s, seen.at_s - self._changed_s)
        if since_s < self._policy.release_after_s:
            return _NOTHING
        whom = "a daemon that acknowledges nothing" if seen.streams else "a daemon that is not connected"
        reason = f"{seen.waiting} commits have waited {waited_s:.0f} s for {whom}"
        if self._policy.protect is Protect.PRIMARY:
            return Decision(ReleaseAction.RELEASE, reason)
        is_new, self._has_warned = not self._has_warned, True
        return Decision(ReleaseAction.WARN, reason) if is_new else _NOTHING

    def _released(self, seen: ReleaseLook) -> Decision:
        behind_s = self._behind_s(seen)
        if not seen.streams or behind_s is None or behind_s > BEHIND_MAX_S:
            self._good_since_s = None
            return _NOTHING
        if self._good_since_s is None:
            self._good_since_s = seen.at_s
        kept_up_s = seen.at_s - self._good_since_s
        # A policy that was changed to "data" meanwhile ends a release like any other.
        if min(kept_up_s, seen.at_s - self._changed_s) < self.hold_s:
            return _NOTHING
        return Decision(ReleaseAction.HOLD_AGAIN, f"the daemon has kept up for {kept_up_s:.0f} s")

    def _behind_s(self, seen: ReleaseLook) -> float | None:
        """Return the age, at most, of the oldest WAL that the daemon has not flushed; None: too long."""
        if seen.flushed is None:
            return None
        if seen.flushed >= seen.end:
            return 0.0
        # The newest look at which the server had no more than is flushed now.
        covered = [at_s for at_s, end in self._ends if end <= seen.flushed]
        return seen.at_s - covered[-1] if covered else None
