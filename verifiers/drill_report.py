"""What a drill's report has beside a verification's: its plan, what clients saw, what was lost.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pitr.pipeline.sign import encode_time
from pitr.restore_plan import RestorableMoment
from verifiers.check import CheckResult
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.drill_scenario import Scenario
from verifiers.findings import findings_of
from verifiers.verify_report import ReportFacts, draft_report
from verifiers.verify_values import Verified

_PLAN_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Lost:
    """What the regions knew at the failure, and what those that were left know of it; None: not known."""

    before: RestorableMoment | None
    after: RestorableMoment | None

    @property
    def lost_ms(self) -> int | None:
        """How much time lies between the last commit of the one and of the other."""
        if self.before is None or self.after is None or self.before.at is None or self.after.at is None:
            return None
        return max(0, round((self.before.at - self.after.at).total_seconds() * 1000))

    @property
    def lost_bytes(self) -> int | None:
        """How much WAL lies between."""
        if self.before is None or self.after is None:
            return None
        return max(0, self.before.lsn.offset - self.after.lsn.offset)


def check_cut(cut: str, asked: Mapping[str, int], maker: CheckMaker) -> CheckResult:
    """D11: no request of the restore went to the region that was cut off; ``asked`` counts them by region."""

    def judge() -> Judgement:
        expected = f"no request goes to region {cut} between the cut and the end of the restore"
        observed = "requests: " + ", ".join(f"region {name} {count}" for name, count in sorted(asked.items()))
        if asked.get(cut):
            return failed(expected, observed, f"region {cut} was sent {asked[cut]} requests")
        if not any(asked.values()):
            return failed(expected, observed, "no request was counted, so the count shows nothing")
        return passed(expected, observed)

    return maker.run("D11", "count the requests to each region", judge)


def check_lost(lost: Lost, is_latest: bool, rpo_ms: int | None, maker: CheckMaker) -> CheckResult:
    """D12: the regions that are left have what all of them had; or lack no more than the objective allows."""
    if not is_latest:
        why = "the target lies before the failure: what came after is given up"
        return maker.skipped("D12", why, is_required=False)

    def judge() -> Judgement:
        bound = "nothing" if rpo_ms is None else f"at most {rpo_ms} ms"
        expected = f"{bound} of what all regions had at the failure ({lost.before}) is lost"
        observed = f"those that are left end at {lost.after}"
        if lost.before is None:
            return passed(expected, "there was no WAL after the backup yet")
        if lost.lost_bytes is None:
            return failed(expected, observed, "the regions that are left have no end")
        if lost.lost_bytes == 0:
            return passed(expected, f"{observed}: nothing is lost")
        if lost.lost_ms is None or lost.lost_ms > (rpo_ms or 0):
            return failed(expected, observed, f"{lost.lost_bytes} bytes of WAL, {lost.lost_ms} ms, are lost")
        return passed(expected, f"{observed}: {lost.lost_ms} ms are lost")

    return maker.run("D12", "compare the end of the archive before and after the failure", judge)


@dataclass(frozen=True, slots=True)
class RestoreDrill:
    """What a drill with a restore adds; ``degradation`` None: no client ran."""

    scenario: Scenario
    failure_at: datetime
    lost: Lost
    is_latest: bool
    degradation: dict[str, Any] | None
    ransomware: dict[str, Any] | None
    notes: tuple[str, ...] = ()


def draft_drill(facts: ReportFacts, found: Verified, drill: RestoreDrill) -> dict[str, Any]:
    """Return the predicate of a drill that restored, without what the log and the series add."""
    draft = draft_report(facts, found)
    scenario, loss = drill.scenario, draft["data_loss"]
    draft["policy"]["plan_document"] = {
        "id": f"scenario/{scenario.name}",
        "version": _PLAN_VERSION,
        "sha256": scenario.sha256,
    }
    draft["degradation"] = drill.degradation
    draft["ransomware"] = drill.ransomware
    if drill.is_latest:
        if loss["data_loss_ms"] is not None and drill.lost.lost_ms is not None:
            loss["data_loss_ms"] = max(loss["data_loss_ms"], drill.lost.lost_ms)
        if loss["lsn_gap_bytes"] is not None and drill.lost.lost_bytes:
            loss["lsn_gap_bytes"] += drill.lost.lost_bytes
            loss["data_loss_tx"] = None
        if drill.lost.lost_bytes:
            before = drill.lost.before
            assert before is not None, "something was lost of it"
            at = None if before.at is None else encode_time(before.at)
            loss["last_source_commit"] = {"lsn": str(before.lsn), "time": at, "xid": None, "marker": None}
        loss["method"] += "; the failure is what the age is counted to, and what all regions had then"
    said = [f"the failure was declared at {encode_time(drill.failure_at)}; nothing was done to the source"]
    if drill.is_latest:
        said.append(
            "the restore is to what the regions had at the failure, without what was archived after it"
        )
    else:
        said.append("what was committed after the target is given up, and is not counted as lost")
    said += degradation_limits(drill.degradation, found.paused_ms)
    draft["result"]["limits"] += [*said, *drill.notes]
    draft["findings"] = findings_of(draft, facts.report_id, facts.care, facts.retests)
    return draft


def degradation_limits(degradation: Mapping[str, Any] | None, paused_ms: int) -> list[str]:
    """Say what the figures that clients measured do not tell, and what of them are our own checks."""
    if degradation is None:
        return ["no client ran: service degradation and errors were not measured"]
    said = []
    if paused_ms:
        said.append(
            f"service degradation and errors include {paused_ms} ms in which recovery stood still for checks"
            " at the target; the recovery time does not"
        )
    if degradation["service_degradation"]["latency_us_before"] is None:
        return [*said, "latency before the failure was not measured: no production server was asked"]
    return [*said, "latency before the failure is that of SELECT 1 on the production server"]


def draft_components(facts: ReportFacts, found: Verified) -> dict[str, Any]:
    """Return the predicate of a component drill: nothing was restored, so nothing is said of a restore."""
    draft = draft_report(facts, found)
    draft["subject"] = {"backups": [], "wal": []}
    draft["source"] |= {"encryption": None, "manifest_signature": None}
    draft["source"]["regions"] = [{**one, "is_used": True} for one in draft["source"]["regions"]]
    draft["scope"]["excluded"].append(
        {
            "item": "backups, restore and recovery",
            "reason": "a component drill tries parts and restores nothing",
        }
    )
    nothing = "nothing was restored"
    for part in draft["target"]["segregation"].values():
        part["shown_by"] = nothing
    draft["data_loss"]["method"] = f"not measured: {nothing}"
    limits = [one for one in draft["result"]["limits"] if not one.startswith("data was read from region")]
    draft["result"]["limits"] = [*limits, "nothing was restored: whether a backup is good was not tested"]
    draft["findings"] = findings_of(draft, facts.report_id, facts.care, facts.retests)
    return draft
