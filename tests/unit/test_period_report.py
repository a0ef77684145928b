"""The report of a period: counted, spread, sampled, signed, logged, shown, exported and audited."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import fix_reports as fix
import pytest
from fix_audit import audit, resigned, write_log
from fix_expiry import ExpiryHouse
from fix_period import ID, PERIOD_ALL, WEEKS, a_busy_log, drawn, issued
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr.errors import MalformedValue, NotAuthentic
from pitr.pipeline.sign import encode_time, payload_of
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.controls import CONTROLS
from verifiers.findings import Care, Retest, finding_states, findings_of
from verifiers.log_entry import EntryKind
from verifiers.period_html import render_period
from verifiers.period_report import sample_of, spread_of
from verifiers.period_series import logged_periods, read_host, read_period
from verifiers.period_shape import PERIOD_TYPE, render_period_schema
from verifiers.period_values import HostRecord, KeyEvent, Period
from verifiers.public_key import to_pem
from verifiers.report_export import export_reports
from verifiers.report_shape import LIST_MAX
from verifiers.rto_samples import report_keys
from verifiers.statement import SignedStatement, open_period

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "period-report-v1.schema.json"


@pytest.fixture(scope="module")
def log() -> AuditLog:
    return a_busy_log()


def test_the_published_schema_is_made_from_the_shape() -> None:
    assert SCHEMA.read_text() == render_period_schema(), "python -m cli.schema_page period > docs/schema/…"


def test_planned_and_actual_runs_are_counted_from_the_log(log: AuditLog) -> None:
    said = drawn(log)
    assert said["runs"] == {
        "planned": 8,
        "reported": 5,
        "passed": 4,
        "warned": 0,
        "failed": 1,
        "missed": 1,
        "abandoned": 1,
        "unfinished": 1,
        "expected": 9,
        # Of five reports, one that was missed and one that came to none.
        "pass_permille": 571,
    }
    assert said["result"]["overall"] == "FAILED"
    assert [(one["state"], one["run_id"]) for one in said["not_run"]] == [
        ("missed", "missed-4"),
        ("abandoned", "run-5"),
    ]
    assert said["not_run"][1]["scheduled_at"] == encode_time(fix.BEGIN + fix.WEEK * 5)
    assert [one["run_id"] for one in said["unfinished"]] == ["run-8"]
    assert [one["certified_by"] for one in said["reports"]] == [["A. Manager"], [], [], [], []]


def test_a_gap_in_the_cadence_is_told_even_if_nobody_logged_a_miss(log: AuditLog) -> None:
    said = drawn(log)
    since = [(one["since"], one["until"]) for one in said["gaps"]]
    assert since == [
        (encode_time(fix.BEGIN + fix.WEEK * 3), encode_time(fix.BEGIN + fix.WEEK * 6)),
        (encode_time(fix.BEGIN + fix.WEEK * 7), encode_time(PERIOD_ALL.end)),
    ]
    # A period that has no run at all, between two that did.
    quiet = Period(fix.BEGIN + fix.WEEK * 4, fix.BEGIN + fix.WEEK * 5, fix.SYSTEM)
    assert [one["until"] for one in drawn(log, quiet)["gaps"]] == [encode_time(quiet.end)]


def test_a_drill_at_the_end_does_not_set_the_periods_policy() -> None:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    for number in (1, 2, 3):
        at = fix.BEGIN + fix.WEEK * number
        said = fix.draft(number, at)
        is_drill = number == 3
        kind, policy_id = ("weekly_verification", "verify/main")
        if is_drill:
            kind, policy_id = ("monthly_drill", "drill-full/main")
            said["policy"]["required_frequency_ms"] = 3 * fix.WEEK_MS
        said["policy"]["policy_id"] = policy_id
        said["identity"]["report_type"] = kind
        facts: dict[str, object] = {"report_type": kind, "system_identifier": str(fix.SYSTEM)}
        intended = EntryKind.DRILL_INTENDED if is_drill else EntryKind.VERIFICATION_INTENDED
        intent = log.intend(intended, f"run-{number}", facts, at - timedelta(seconds=1))
        fix.issue_report(log, intent, said, at + timedelta(minutes=6))
    said = drawn(log)
    assert (said["policy"]["policy_id"], said["policy"]["required_frequency_ms"]) == (
        "verify/main",
        fix.WEEK_MS,
    )
    # Nine weeks: nine verifications, and three drills.
    assert said["runs"]["expected"] == 9 + 3
    drill_alone = drawn(log, Period(fix.BEGIN + fix.WEEK * 3, PERIOD_ALL.end, fix.SYSTEM))
    assert drill_alone["policy"]["policy_id"] == "drill-full/main"
    assert "there is no verification" in drill_alone["policy"]["source"]


def test_a_drill_of_another_policy_does_not_stand_for_one_that_was_not_held(tmp_path: Path) -> None:
    """A failover drill each week, and the full one once: both are monthly drills."""
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    for number in range(1, WEEKS + 1):
        at = fix.BEGIN + fix.WEEK * number
        said = fix.draft(number, at)
        said["policy"]["policy_id"] = "drill-full/main" if number == 1 else "drill-failover/main"
        fix.issue_report(log, fix.intend(log, number, at), said, at + timedelta(minutes=6))
    (gap,) = drawn(log)["gaps"]
    assert gap["since"] == encode_time(fix.BEGIN + fix.WEEK)
    folder, key = tmp_path / "reports", tmp_path / "key.pem"
    export_reports(log.store, fix.REPOSITORY, fix.VERIFIER.public, folder)
    key.write_text(to_pem(fix.VERIFIER.public))
    found = audit(folder, key, now=encode_time(PERIOD_ALL.end))
    assert f"cluster {fix.SYSTEM}: drill-full/main: 56.0 days from 2026-01-11" in found.texts("warning")
    assert "drill-failover" not in found.texts("warning")


def test_what_is_in_a_period_is_decided_by_the_logs_times(log: AuditLog) -> None:
    ends = [entry for entry in log.entries() if entry.text("report_id") and entry.kind.endswith("-ended")]
    start, end = ends[1].at, ends[3].at
    said = drawn(log, Period(start, end, fix.SYSTEM))
    assert [one["series_seq"] for one in said["reports"]] == [2, 3]
    other = drawn(log, Period(PERIOD_ALL.start, PERIOD_ALL.end, fix.SYSTEM + 1))
    assert (other["runs"]["missed"], other["runs"]["abandoned"], other["runs"]["unfinished"]) == (0, 0, 0)
    assert other["policy"]["source"] == "the configuration: the period has no report"


def test_figures_are_ones_that_were_measured(log: AuditLog) -> None:
    said = drawn(log)
    assert said["recovery_time"] == {
        "measured": 5,
        "objective_missed": 0,
        "min_ms": 245_001,
        "median_ms": 245_003,
        "p95_ms": 245_007,
        "max_ms": 245_007,
        "worst_report_id": said["reports"][-1]["report_id"],
    }


def test_a_past_moment_that_was_there_is_no_figure_of_data_loss() -> None:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    for number, kind, lost_ms in (
        (1, "latest", 7_000),
        (2, "time", 0),
        (3, "time", None),
        (4, "latest", 9_000),
    ):
        at = fix.BEGIN + fix.WEEK * number
        said = fix.draft(number, at)
        said["request"] |= {"kind": kind, "value": None if kind == "latest" else encode_time(at)}
        said["data_loss"]["data_loss_ms"] = lost_ms
        fix.issue_report(log, fix.intend(log, number, at), said, at + timedelta(minutes=6))
    found = drawn(log)["data_loss"]
    assert (found["measured"], found["min_ms"], found["median_ms"], found["max_ms"]) == (
        2,
        7_000,
        7_000,
        9_000,
    )


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60))
@settings(max_examples=25, deadline=None)
def test_the_spread_is_that_of_a_plain_count(values: list[int]) -> None:
    found = spread_of([(value, str(number)) for number, value in enumerate(values)])
    ordered = sorted(values)
    assert (found["measured"], found["min_ms"], found["max_ms"]) == (len(values), ordered[0], ordered[-1])
    assert found["median_ms"] == statistics.median_low(values)
    # At least 95 % are no worse, and fewer than that are better than it.
    assert sum(one <= found["p95_ms"] for one in values) >= 0.95 * len(values)
    assert sum(one < found["p95_ms"] for one in values) < 0.95 * len(values)
    assert values[int(found["worst_report_id"])] == ordered[-1]


def weekly(log: AuditLog, number: int, *, recovery_ms: int, fails: bool = False, retests: Any = ()) -> Any:
    """Issue weekly report ``number`` with its findings as a run makes them; return its predicate."""
    at = fix.BEGIN + fix.WEEK * number
    said = fix.draft(number, at, fails=fails)
    said["timings"]["recovery_time_ms"] = recovery_ms
    said["findings"] = findings_of(said, said["identity"]["report_id"], Care(), retests)
    return fix.issue_report(log, fix.intend(log, number, at), said, at + timedelta(minutes=6)).predicate


def test_only_a_retest_that_succeeded_closes_a_finding_of_a_period() -> None:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)

    def standing() -> list[tuple[str, str, str | None]]:
        said = drawn(log)
        opened = sum(one["status"] == "open" for one in said["findings"])
        assert said["result"]["open_findings"] == opened
        need = "findings" in next(one for one in said["mapping"] if one["control"] == "CC7.5")["missing"]
        assert need == (opened > 0)
        return [(one["id"], one["status"], one["retest_report_id"]) for one in said["findings"]]

    reports = [weekly(log, 1, recovery_ms=400_000, fails=True)]
    assert standing() == [("1/F-C04", "open", None), ("1/F-RTO", "open", None)]
    # A run that went well and that nobody called a retest says nothing of what was done.
    reports.append(weekly(log, 2, recovery_ms=1))
    assert standing() == [("1/F-C04", "open", None), ("1/F-RTO", "open", None)]
    again = [Retest(state) for state in finding_states(reports)]
    reports.append(weekly(log, 3, recovery_ms=500_000, fails=True, retests=again))
    failed = reports[-1]["identity"]["report_id"]
    assert standing() == [("1/F-C04", "open", failed), ("1/F-RTO", "open", failed)]
    again = [Retest(state, "a faster disk") for state in finding_states(reports) if state.id == "F-RTO"]
    reports.append(weekly(log, 4, recovery_ms=1, retests=again))
    met = reports[-1]["identity"]["report_id"]
    assert standing() == [("1/F-C04", "open", failed), ("1/F-RTO", "closed", met)]
    assert {one["report_id"] for one in drawn(log)["findings"]} == {reports[0]["identity"]["report_id"]}


def test_controls_over_a_period_need_what_only_a_period_shows(log: AuditLog) -> None:
    found = {one["control"]: one for one in drawn(log)["mapping"]}
    assert len(found) == len(CONTROLS)
    assert "schedule" in found["A1.3"]["missing"]
    assert "certified" in found["164.308(a)(7)(ii)(B)"]["missing"]
    assert found["164.308(a)(7)(ii)(C)"]["status"] == "not-tested"


def test_backups_deletions_and_keys_come_from_what_others_signed() -> None:
    house = ExpiryHouse()
    first = house.expire(14)
    house.now = house.at(30)
    second = house.expire(9)
    assert first.record is not None
    assert second.record is not None
    repository, system = house.repository(), house.archive.system_identifier
    host = read_host(repository, house.house.root.public, system)
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    fix.run_week(log, 1)
    period = Period(house.at(-1), house.at(40), system)
    said = drawn(log, period, host)
    # The second record no longer names what every region has deleted since the first.
    records = (first.record, second.record)
    names = [one.backup for one in house.backups]
    kept = [name for name in names if not any(record.names_backup(name) for record in records)]
    assert [one["backup"] for one in said["backups"]["listed"]] == kept
    assert [one["name"] for one in said["subject"]["backups"]] == kept
    assert said["backups"]["full"] + said["backups"]["incr"] == len(kept) > 0
    assert [one["sequence"] for one in said["deletions"]] == [1, 2]
    gone = [set(one["backups"]) for one in said["deletions"]]
    # Each record repeats the one before it; what is told of it is what is new.
    assert gone[0] == {one.backup for one in first.record.backups}
    assert gone[0] | gone[1] >= {one.backup for one in second.record.backups}
    assert not gone[0] & gone[1]
    assert {one["approved_by"] for one in said["deletions"]} == {house.house.root.public.key_id}
    assert "writer-let-in" in [one["event"] for one in said["key_events"]]
    later = drawn(log, Period(house.at(25), house.at(40), system), host)
    assert [one["sequence"] for one in later["deletions"]] == [2]
    assert later["backups"]["listed"] == []


def test_a_list_that_was_cut_says_so(log: AuditLog) -> None:
    let_in = KeyEvent(fix.BEGIN + fix.WEEK, "writer-let-in", "archive x")

    def drawn_with(count: int) -> dict[str, Any]:
        return dict(drawn(log, PERIOD_ALL, HostRecord([], 0, [], [], [let_in] * count, "ab" * 8)))

    assert not any("no more than" in one for one in drawn_with(LIST_MAX - 2)["result"]["limits"])
    said = drawn_with(LIST_MAX + 1)
    assert len(said["key_events"]) == LIST_MAX
    (told,) = [one for one in said["result"]["limits"] if "no more than" in one]
    assert told == f"key events: no more than {LIST_MAX} are listed, and there may be others"


def test_a_sample_can_be_drawn_again_and_follows_from_the_log_alone(log: AuditLog) -> None:
    said = drawn(log)
    root = said["log"]["root_hash"]
    assert said["sample"]["seed"] == hashlib.sha256(b"pitr/v1/period-sample\0" + root.encode()).hexdigest()
    pairs = [(str(number), fix.digest(str(number))) for number in range(100)]
    seed, picked = sample_of(pairs, root)
    assert len(picked) == len(set(picked)) == 10
    by_hand = sorted(pairs, key=lambda one: hashlib.sha256(f"{seed}:{one[1]}".encode()).hexdigest())
    assert picked == [one for one, _ in by_hand[:10]]
    assert sample_of(pairs, fix.digest("another root"))[1] != picked
    assert len(sample_of(pairs[:3], root)[1]) == 3


def test_a_period_that_is_not_over_says_so(log: AuditLog) -> None:
    said = drawn(log, after=-fix.WEEK)
    assert any("the period was not over" in one for one in said["result"]["limits"])
    assert said["runs"]["expected"] == 8


def test_an_empty_log_has_no_period(tmp_path: Path) -> None:
    with pytest.raises(MalformedValue, match="nothing was ever verified"):
        issued(AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER))


def test_it_is_signed_logged_and_read_back() -> None:
    log = a_busy_log()
    report = issued(log)
    assert json.loads(payload_of(report.envelope))["predicateType"] == PERIOD_TYPE
    (logged,) = logged_periods(log.entries())
    read = read_period(log.store, fix.VERIFIER.public, logged)
    assert read.predicate == report.predicate
    assert open_period(report.envelope, fix.VERIFIER.public).payload_sha256 == logged.report_sha256
    with pytest.raises(NotAuthentic):
        open_period(report.envelope, fix.STRANGER.public)
    forged = resigned(report.envelope, fix.VERIFIER, lambda said: said["predicate"].pop("gaps") and said)
    with pytest.raises(MalformedValue):
        open_period(forged, fix.VERIFIER.public)


def test_a_forecast_does_not_take_it_for_a_damaged_report_of_a_run() -> None:
    log = a_busy_log()
    before = report_keys(log.store, log.key_id, fix.SYSTEM)
    assert before
    issued(log)
    assert report_keys(log.store, log.key_id, fix.SYSTEM) == before


def test_the_page_shows_what_matters_and_nothing_active(log: AuditLog) -> None:
    report = issued(a_busy_log())
    page = render_period(report).decode()
    assert render_period(report).decode() == page
    for words in ("FAILED", "missed-4", "nobody verified", "A. Manager", "Evidence for controls"):
        assert words in page
    assert "<script" not in page


class Folder:
    """What an auditor got, with two period reports in it."""

    def __init__(self, folder: Path) -> None:
        self.log = a_busy_log()
        issued(self.log)
        half = Period(PERIOD_ALL.start, fix.BEGIN + fix.WEEK * 4, fix.SYSTEM)
        issued(self.log, half, 2)
        self.folder, self.key = folder / "reports", folder / "key.pem"
        export_reports(self.log.store, fix.REPOSITORY, fix.VERIFIER.public, self.folder)
        self.key.write_text(to_pem(fix.VERIFIER.public))
        self.path = self.folder / f"period-{ID.format(1)}.json"

    def errors(self) -> str:
        return audit(self.folder, self.key, now=encode_time(PERIOD_ALL.end)).texts("error")

    def forge(self, change: Callable[[Any], Any]) -> None:
        """Sign a changed report with the verifier's own key, and let the log tell of it."""
        forged = resigned(self.path.read_bytes(), fix.VERIFIER, change)
        digest = hashlib.sha256(payload_of(forged)).hexdigest()
        signed = SignedStatement(forged, json.loads(payload_of(forged))["predicate"])
        page = render_period(signed)
        self.path.write_bytes(forged)
        self.path.with_suffix(".html").write_bytes(page)
        entries = [json.loads(line) for line in (self.folder / "log.jsonl").read_bytes().splitlines()]
        for entry in entries:
            if entry["facts"].get("report_id") == ID.format(1):
                entry["facts"] |= {"report_sha256": digest, "html_sha256": hashlib.sha256(page).hexdigest()}
        # The second one would notice that the log it is of has changed; it is not what is looked at here.
        entries = [one for one in entries if one["facts"].get("report_id") != ID.format(2)]
        for path in self.folder.glob(f"period-{ID.format(2)}*"):
            path.unlink()
        write_log(self.folder, entries)


def test_the_auditors_tool_accepts_period_reports_and_an_export_may_be_repeated(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.errors() == ""
    done = export_reports(folder.log.store, fix.REPOSITORY, fix.VERIFIER.public, folder.folder)
    assert (done.periods, folder.errors()) == (2, "")


def other_root(said: Any) -> None:
    said["predicate"]["log"]["root_hash"] = "0" * 64


def other_size(said: Any) -> None:
    said["predicate"]["log"]["tree_size"] -= 1


def other_digest(said: Any) -> None:
    said["predicate"]["reports"][0]["report_sha256"] = "0" * 64


def later_start(said: Any) -> None:
    said["predicate"]["identity"]["period_start"] = encode_time(fix.BEGIN + fix.WEEK * 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: said["predicate"]["reports"].pop(1), "does not list just the runs"),
        (lambda said: said["predicate"]["not_run"].pop(0), "does not list just the runs"),
        (lambda said: said["predicate"]["not_run"].pop(1), "does not list just the runs"),
        (later_start, "does not list just the runs"),
        (other_digest, "does not list just the runs"),
        (other_root, "is not the report that the log tells of"),
        (other_size, "is not the report that the log tells of"),
    ],
)
def test_a_verifier_that_signs_another_list_than_its_log_has_is_found(
    tmp_path: Path, change: Callable[[Any], Any], told: str
) -> None:
    folder = Folder(tmp_path)
    folder.forge(lambda said: change(said) and None)
    assert told in folder.errors()


def test_a_forgery_that_changes_nothing_is_accepted(tmp_path: Path) -> None:
    """What the test before finds is the change, and not the way in which it was made."""
    folder = Folder(tmp_path)
    folder.forge(lambda said: None)
    assert folder.errors() == ""


def test_a_period_report_that_was_changed_swapped_or_removed_is_found(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    envelope, page = folder.path.read_bytes(), folder.path.with_suffix(".html").read_bytes()
    other = folder.folder / f"period-{ID.format(2)}.json"
    unsigned = envelope[: envelope.index(b'"sig"')] + other.read_bytes()[other.read_bytes().index(b'"sig"') :]
    for bad in (unsigned, other.read_bytes(), envelope[:-1], b"{}"):
        folder.path.write_bytes(bad)
        assert folder.path.name in folder.errors()
    folder.path.write_bytes(envelope)
    for bad in (page.replace(b"FAILED", b"PASSED"), other.with_suffix(".html").read_bytes()):
        folder.path.with_suffix(".html").write_bytes(bad)
        assert "is not the page that was logged" in folder.errors()
    folder.path.with_suffix(".html").write_bytes(page)
    folder.path.unlink()
    assert "is missing" in folder.errors()
    folder.path.write_bytes(envelope)
    assert folder.errors() == ""
    (folder.folder / f"period-{ID.format(3)}.json").write_bytes(envelope)
    assert "the log does not tell of it" in folder.errors()
