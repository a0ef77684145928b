"""What is logged of a run before it begins, which its report must agree with.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from pitr.pipeline.sign import encode_time
from verifiers.check_table import CHECKS
from verifiers.verify_report import Sampling


def intent_facts(
    *,
    system_identifier: int,
    region: str,
    without_region: str | None,
    scheduled_at: datetime | None,
    target: str,
    sampling: Sampling,
    stretches: str | None,
) -> Mapping[str, object]:
    """Return what is logged before a run begins.  Of a random target only what it will be drawn from."""
    return {
        "checks": intended_checks(),
        "system_identifier": str(system_identifier),
        "region": region,
        "without_region": without_region,
        "scheduled_at": None if scheduled_at is None else encode_time(scheduled_at),
        "method": sampling.method,
        "target": target,
        "seed_sha256": sampling.seed_sha256,
        "stretches": stretches,
    }


def intended_checks(more: Sequence[str] = ()) -> str:
    """Return the checks that a restore's report will have a result of, whatever comes of them.

    Logged before the run, so that a check which nobody likes cannot be left out after it.
    """
    # The owner's queries have ids of their own.
    return " ".join([*(one for one in CHECKS if one != "C15"), *more])
