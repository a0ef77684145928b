"""Why a replay is not begun: the plan does not fit, or something is missing that nobody accepted.  Pure."""

from __future__ import annotations

from pitr.errors import PitrError


class PlanRefused(PitrError):
    """The plan is not for this cluster or this database, or not as it was named.  Nothing was done."""


class GapNotAccepted(PitrError):
    """Records that should be replayed are gone, and nobody said that this is accepted.  Nothing was done."""
