"""Verification: what it costs beside the restore and its checks, how long its records take to report and to
audit, and how well a recovery time is forecast (``rto_forecast``, from restores of several sizes).

One run is real; the year and the thousand are that run's own report under other dates, signed and logged by
another key as any report is, so that their sizes are those of real ones.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import rto_forecast
from benchmarks.cluster import bench_cluster
from benchmarks.harness import MIB, Row, compare, run
from benchmarks.site import BenchSite
from cli.context import App
from cli.report_log import open_log
from pitr.pipeline.sign import decode_payload, encode_time, payload_of
from verifiers import pitr_audit
from verifiers.audit_log import AuditLog
from verifiers.log_entry import EntryKind
from verifiers.report_series import issue_report
from verifiers.run_ids import uuid7

_BEGIN = datetime(2025, 1, 1, 3, 0, tzinfo=UTC)
_DAY = timedelta(days=1)
_YEAR_MAX_S, _AUDIT_MAX_S, _OVERHEAD_MAX = 5.0, 30.0, 10.0
_AUDITED = 1000
_REPORT_TYPES = ((7, "weekly_verification"), (30, "monthly_drill"), (91, "quarterly_drill"))


def run_all(work: Path, quick: bool) -> list[Row]:
    """Return the rows; quick: a small cluster, and a tenth of the reports to audit."""
    with bench_cluster(work) as cluster:
        cluster.fill((64 if quick else 2048) * MIB)
        with BenchSite(cluster, work / "site") as site:
            site.run_configured("backup", "--type", "full", "--json")
            config = _configure(site, work)
            site.run("verifier", "init", "-c", config, "--json")
            report, row = _one_run(site, config, work)
            rows = [row]
    key = work / "bench.key"
    site.run("verifier", "init", "--key", key, "--public", work / "bench.pub.pem", "--json")
    app = App(config_path=config)
    with open_log(app, key) as log:
        year = sorted(_year())
        for number, (day, report_type) in enumerate(year, 1):
            _issue(log, report, number, _BEGIN + _DAY * day, report_type)
    rows.append(_report_of_year(site, config, key, len(year)))
    count = _AUDITED // 10 if quick else _AUDITED
    # After what the report of the year logged just now: a log never goes back in time.
    later = datetime.now(UTC)
    with open_log(app, key) as log:
        for number in range(len(year) + 1, count + 1):
            _issue(log, report, number, later + _DAY * number, "weekly_verification")
    rows.append(_audit(site, config, work, count))
    folder = work / "forecast"
    folder.mkdir(mode=0o755)
    return [*rows, *rto_forecast.run_all(folder, quick)]


def _configure(site: BenchSite, work: Path) -> Path:
    """Add what a verifier needs to the site's configuration."""
    text = site.config.read_text()
    more = f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
    site.config.write_text(f'{text}{more}scratch_dir = "{work}/scratch"\nevery = "never"\n')
    return site.config


def _one_run(site: BenchSite, config: Path, work: Path) -> tuple[Mapping[str, Any], Row]:
    """Verify once; return the report, and what the run took beside what it is there for."""
    folder = work / "reports"
    usage = run(site.words("-c", config, "verify", "--latest", "--reports", folder, "--json"))
    path = next(path for path in folder.glob("*.json") if path.name.count(".") == 1)
    predicate = decode_payload(payload_of(path.read_bytes()))["predicate"]
    assert isinstance(predicate, dict)
    useful_s = (
        predicate["timings"]["recovery_time_ms"] + sum(one["ms"] for one in predicate["checks"])
    ) / 1000
    over = 100 * (usage.wall_s - useful_s) / useful_s
    print(f"verify: {usage.wall_s:.1f} s, of it restore, replay and checks {useful_s:.1f} s", file=sys.stderr)
    name = "verify: beside restore, replay and checks (process start, report, wipe)"
    return predicate, compare(name, "%", over, "(none)", None, at_most=_OVERHEAD_MAX)


def _year() -> Iterator[tuple[int, str]]:
    """Yield the days of 52 weekly, 12 monthly and 4 quarterly runs."""
    for days, report_type in _REPORT_TYPES:
        count = {7: 52, 30: 12, 91: 4}[days]
        yield from ((days * number, report_type) for number in range(1, count + 1))


def _issue(log: AuditLog, template: Mapping[str, Any], number: int, at: datetime, report_type: str) -> None:
    """Log an intent and issue the template as the report of a run at ``at``."""
    said = {
        name: value for name, value in copy.deepcopy(dict(template)).items() if name not in ("log", "trend")
    }
    system = said["scope"]["system_identifier"]
    facts = {
        "report_type": report_type,
        "system_identifier": system,
        "scheduled_at": encode_time(at),
        "target": "latest",
    }
    intent = log.intend(EntryKind.VERIFICATION_INTENDED, f"run-{number}", facts, at - timedelta(seconds=1))
    ended_at = at + timedelta(minutes=5)
    said["identity"] |= {
        "report_id": uuid7(at, os.urandom(10)),
        "report_type": report_type,
        "created_at": encode_time(ended_at),
    }
    said["trigger"] |= {
        "scheduled_at": encode_time(at),
        "started_at": encode_time(at),
        "sampling": {"method": "latest", "seed": None, "seed_sha256": None},
    }
    said["timings"]["recovery_time_ms"] += number
    # The dates are made up, and no test of them was late.
    said["policy"]["required_frequency_ms"] = None
    issue_report(log, intent, said, ended_at)


def _report_of_year(site: BenchSite, config: Path, key: Path, count: int) -> Row:
    words: list[str | Path] = [
        "-c",
        config,
        "report",
        "--from",
        "2025-01-01",
        "--to",
        "2025-12-31",
        "--verifier-key",
        key,
    ]
    usage = run(site.words(*words, "--json"))
    print(f"verify: report of a year: {usage.cpu_s:.1f} CPU s", file=sys.stderr)
    name = f"verify: report of a year ({count} runs), the whole process"
    return compare(name, "s", usage.wall_s, "(none)", None, at_most=_YEAR_MAX_S)


def _audit(site: BenchSite, config: Path, work: Path, count: int) -> Row:
    folder, public = work / "audited", work / "bench.pub.pem"
    site.run("-c", config, "report", "export", folder, "--verifier", public, "--json")
    words: list[str | Path] = [sys.executable, "-I", "-S", pitr_audit.__file__, "--key", public, folder]
    usage = run([*words, "--json"], stdout=work / "audit.json")
    found = json.loads((work / "audit.json").read_text())
    assert found["reports"] == count, found
    print(f"verify: audit: {usage.cpu_s:.1f} CPU s", file=sys.stderr)
    name = f"verify: pitr-audit of {count} reports"
    return compare(name, "s", usage.wall_s, "(none)", None, at_most=_AUDIT_MAX_S * count / _AUDITED)
