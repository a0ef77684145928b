"""Verification: what it costs beside the restore and its checks, how long its records take to report and to
audit, and how well a recovery time is forecast (``rto_forecast``, from restores of several sizes).

One run is real; the year and the thousand are that run's own report under other dates, signed and logged by
another key as any report is, so that their sizes are those of real ones.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import rto_forecast
from benchmarks.cluster import bench_cluster
from benchmarks.harness import MIB, Row, Usage, compare, median, ratio_goal, run
from benchmarks.site import BenchSite
from cli.context import App
from cli.verify_log import open_log
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
# Every so many days, how many in the year, and how far into the day: those of one day begin in turn.
_REPORT_TYPES = (
    (7, 52, timedelta(), "weekly_verification"),
    (30, 12, timedelta(hours=2), "monthly_drill"),
    (91, 4, timedelta(hours=4), "quarterly_drill"),
)
_REPEATS = 3


def run_all(work: Path, quick: bool) -> list[Row]:
    """Return the rows; quick: a small cluster, and a tenth of the reports to audit."""
    with bench_cluster(work) as cluster:
        cluster.fill((64 if quick else 2048) * MIB)
        with BenchSite(cluster, work / "site") as site:
            site.run_configured("backup", "--type", "full", "--json")
            config = _configure(site, work)
            site.run("verifier", "init", "-c", config, "--json")
            report, rows = _runs(site, config, work)
    key = work / "bench.key"
    site.run("verifier", "init", "--key", key, "--public", work / "bench.pub.pem", "--json")
    settings = App(config_path=config).settings()
    assert settings.verify is not None, "it was configured"
    auditor = replace(settings.verify, key_file=key)
    with open_log(settings, auditor) as opened:
        year = sorted(_year())
        for number, (after, report_type) in enumerate(year, 1):
            _issue(opened.log, report, number, _BEGIN + after, report_type)
    rows += _report_of_year(site, config, key, len(year))
    count = _AUDITED // 10 if quick else _AUDITED
    # After what the report of the year logged just now: a log never goes back in time.
    later = datetime.now(UTC)
    with open_log(settings, auditor) as opened:
        for number in range(len(year) + 1, count + 1):
            _issue(opened.log, report, number, later + _DAY * number, "weekly_verification")
    rows += _audit(site, config, work, count)
    folder = work / "forecast"
    folder.mkdir(mode=0o755)
    return [*rows, *rto_forecast.run_all(folder, quick)]


def _configure(site: BenchSite, work: Path) -> Path:
    """Add what a verifier needs to the site's configuration."""
    text = site.config.read_text()
    more = f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
    site.config.write_text(f'{text}{more}scratch_dir = "{work}/scratch"\nevery = "never"\n')
    return site.config


@dataclass(frozen=True, slots=True)
class _Pair:
    """A plain restore and then a verification, whole processes; of it the checks, as its report has them."""

    report: Mapping[str, Any]
    restore_s: float
    verify_s: float
    checks_s: float

    @property
    def beside_percent(self) -> float:
        """What the verification took beside what it is there for, all by its own clock."""
        useful_s: float = self.report["timings"]["recovery_time_ms"] / 1000 + self.checks_s
        return 100 * (self.verify_s - useful_s) / useful_s


def _runs(site: BenchSite, config: Path, work: Path) -> tuple[Mapping[str, Any], list[Row]]:
    """Restore and verify in turn; return the last report, and what a verification adds."""
    pairs = [_pair(site, config, work, number) for number in range(_REPEATS)]
    middle = sorted(pairs, key=lambda pair: pair.verify_s / (pair.restore_s + pair.checks_s))[_REPEATS // 2]
    peer = f"pitr restore, and {middle.checks_s:.1f} s of checks"
    rows = [
        ratio_goal(
            "verify: the whole process",
            "s",
            middle.verify_s,
            peer,
            middle.restore_s + middle.checks_s,
            at_most=1 + _OVERHEAD_MAX / 100,
        ),
        compare(
            "verify: beside restore, replay and checks (process start, log, report)",
            "%",
            statistics.median(pair.beside_percent for pair in pairs),
            "(none)",
            None,
            at_most=_OVERHEAD_MAX,
        ),
    ]
    return pairs[-1].report, rows


def _pair(site: BenchSite, config: Path, work: Path, number: int) -> _Pair:
    into, folder = work / "into", work / f"reports-{number}"
    words: list[str | Path] = ["restore", "--identity", site.identity, "--to", "latest", "--into", into]
    restored = run(site.words("-c", config, *words, "--yes", "--json"))
    for left in (into, into.with_name("into.pitr")):
        shutil.rmtree(left, ignore_errors=True)
    into.with_name("into.recovery-certificate.json").unlink(missing_ok=True)
    verified = run(site.words("-c", config, "verify", "--latest", "--reports", folder, "--json"))
    # The folder has every report of the series; their names begin with its numbers.
    path = max(path for path in folder.glob("*.json") if path.name.count(".") == 1)
    report = decode_payload(payload_of(path.read_bytes()))["predicate"]
    assert isinstance(report, dict)
    checks_s = sum(one["ms"] for one in report["checks"]) / 1000
    print(
        f"verify: {verified.wall_s:.1f} s ({verified.cpu_s:.1f} CPU s), of it checks {checks_s:.1f} s;"
        f" restored in {restored.wall_s:.1f} s ({restored.cpu_s:.1f} CPU s)",
        file=sys.stderr,
    )
    return _Pair(report, restored.wall_s, verified.wall_s, checks_s)


def _year() -> Iterator[tuple[timedelta, str]]:
    """Yield when in the year the 52 weekly, 12 monthly and 4 quarterly runs begin."""
    for days, count, hours, report_type in _REPORT_TYPES:
        yield from ((_DAY * days * number + hours, report_type) for number in range(1, count + 1))


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


def _report_of_year(site: BenchSite, config: Path, key: Path, count: int) -> list[Row]:
    words: list[str | Path] = ["-c", config, "report", "--from", "2025-01-01", "--to", "2025-12-31"]
    words += ["--verifier-key", key, "--json"]
    usage = median([run(site.words(*words)) for _ in range(_REPEATS)])
    name = f"verify: report of a year ({count} runs), the whole process"
    return _wall_and_cpu(name, usage, _YEAR_MAX_S)


def _audit(site: BenchSite, config: Path, work: Path, count: int) -> list[Row]:
    folder, public, said = work / "audited", work / "bench.pub.pem", work / "audit.json"
    site.run("-c", config, "report", "export", folder, "--verifier", public, "--json")
    words: list[str | Path] = [sys.executable, "-I", "-S", pitr_audit.__file__, "--key", public, folder]
    usage = median([run([*words, "--json"], stdout=said) for _ in range(_REPEATS)])
    found = json.loads(said.read_text())
    assert found["ok"], found["findings"]
    assert found["reports"] == count, found["reports"]
    return _wall_and_cpu(f"verify: pitr-audit of {count} reports", usage, _AUDIT_MAX_S * count / _AUDITED)


def _wall_and_cpu(name: str, usage: Usage, wall_max_s: float) -> list[Row]:
    return [
        compare(name, "s", usage.wall_s, "(none)", None, at_most=wall_max_s),
        compare(f"{name}: CPU", "s", usage.cpu_s, "(none)", None),
    ]
