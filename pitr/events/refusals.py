"""Why a replay is not begun: the plan does not fit.  Missing events are ``gaps.GapsFound``.  Pure."""

from __future__ import annotations

from pitr.errors import PitrError


class PlanRefused(PitrError):
    """The plan is not for this cluster or this database, or not as it was named.  Nothing was done."""
