"""What a report says of the runs before it: a row a run, made of that run's own report.  Pure.

The auditor's tool makes the same rows of the reports in the folder and compares them.
"""

from __future__ import annotations

from typing import Any

from verifiers.statement import SignedStatement


def trend_row(report: SignedStatement) -> dict[str, Any]:
    """Return what later reports say of this one."""
    said = report.predicate
    identity, policy, timings = said["identity"], said["policy"], said["timings"]
    replayed = timings["wal_replay_done"]
    return {
        "series_seq": identity["series_seq"],
        "report_type": identity["report_type"],
        "created_at": identity["created_at"],
        "overall": said["result"]["overall"],
        "rto_ms": policy["rto_ms"],
        "rpo_ms": policy["rpo_ms"],
        "recovery_time_ms": timings["recovery_time_ms"],
        "wal_replay_done_ms": None if replayed is None else replayed["ms"],
        "data_loss_ms": said["data_loss"]["data_loss_ms"],
        "bytes": timings["bytes"],
    }
