"""What was measured is read from the signed reports: the newest, of this cluster, and nobody else's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from fix_reports import BEGIN, MANAGER, REPOSITORY, SYSTEM, VERIFIER, ReportHouse, draft, intend

from cli.forecast import NO_RUNS, forecast_text, learn_from
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.public_key import to_pem
from verifiers.report_series import issue_report
from verifiers.rto_model import Forecast, Run, Work
from verifiers.rto_samples import RUNS_WANTED, read_runs, report_keys


def test_the_newest_reports_come_first_and_no_more_than_are_read(tmp_path: Path) -> None:
    house = ReportHouse(tmp_path / "reports", weeks=RUNS_WANTED + 2, certified=())
    runs = read_runs(house.store, VERIFIER.public, SYSTEM, [])
    assert len(runs) == RUNS_WANTED
    # Of 245 seconds 120 went by before it was decided to recover.
    newest = Run(Work(4_000_000_000, 0, 160_000_000), 125.0 + (RUNS_WANTED + 2) / 1000)
    assert runs[0] == newest
    assert [run.seconds for run in runs] == sorted((run.seconds for run in runs), reverse=True)


def test_reports_that_measured_nothing_do_not_push_out_those_that_did() -> None:
    """A drill of components each day, and one verification a week: three weeks are in 24 reports."""
    log = AuditLog(MemoryStore(), REPOSITORY, VERIFIER)
    for day in range(1, 25):
        at = BEGIN + timedelta(days=day)
        said = draft(day, at)
        if day % 8:
            said["timings"] |= dict.fromkeys(("recovery_time_ms", "bytes", "wal_bytes", "throughput_bytes_s"))
        issue_report(log, intend(log, day, at), said, at + timedelta(minutes=6))
    seconds = [run.seconds for run in read_runs(log.store, VERIFIER.public, SYSTEM, [])]
    assert seconds == [125.024, 125.016, 125.008]


def test_reports_of_another_cluster_or_signer_or_that_were_changed_do_not_count(tmp_path: Path) -> None:
    house = ReportHouse(tmp_path / "reports", weeks=3)
    assert read_runs(house.store, VERIFIER.public, SYSTEM + 1, []) == []
    assert read_runs(house.store, MANAGER.public, SYSTEM, []) == []
    newest, *_ = report_keys(house.store, VERIFIER.public.key_id, SYSTEM)
    body = house.store.get(newest)
    house.store.delete(newest)
    house.store.put(newest, body.replace(b"a", b"b"))
    assert len(read_runs(house.store, VERIFIER.public, SYSTEM, [])) == 2


def test_the_only_verifier_counts_where_none_is_configured(tmp_path: Path) -> None:
    house = ReportHouse(tmp_path / "reports", weeks=3)
    found = learn_from(house.store, tmp_path / "none.pem", SYSTEM, [])
    assert found is not None
    assert found.runs == 3
    assert learn_from(MemoryStore(), None, SYSTEM, []) is None
    (tmp_path / "other.pem").write_text(to_pem(MANAGER.public))
    assert learn_from(house.store, tmp_path / "other.pem", SYSTEM, []) is None


def test_a_forecast_is_told_with_its_error_or_that_none_is_known() -> None:
    assert forecast_text(None) == NO_RUNS
    assert forecast_text(Forecast(83.0, None, 1)) == (
        "about 1 min 23 s (its error is not known, from 1 measured recovery)"
    )
    assert forecast_text(Forecast(9.0, 0.123, 7)) == "about 9.0 s (± 12%, from 7 measured recoveries)"
