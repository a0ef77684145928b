"""Prometheus's own judge of what the daemon serves, and of the alerts that are offered with it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from fix_apt import AptProgram
from fix_cli import CHECKOUT, MakeSite, Site, wait_until

from cli.metrics import metric_names

pytestmark = pytest.mark.needs_apt

RULES = CHECKOUT / "examples" / "prometheus" / "pitr-rules.yml"
HOST = 'instance="db1:9187"'


def scrape(site: Site) -> str:
    """Return what the daemon answers to Prometheus."""
    found = re.findall(r"address=(http\S+)", site.daemon.tail())
    with urllib.request.urlopen(found[-1], timeout=20) as answer:
        text = answer.read()
    assert isinstance(text, bytes)
    return text.decode()


# They have a value only while something grows towards its end, or once recoveries were measured.
FORECASTS = {
    "pitr_slot_lost_seconds",
    "pitr_wal_disk_full_seconds",
    "pitr_recovery_forecast_seconds",
    "pitr_recovery_forecast_error_ratio",
}
# They have a value only where the configuration names Kafka, its mirror or Redis.
BESIDE = ("pitr_fence", "pitr_mirror", "pitr_redis")


def test_promtool_accepts_every_metric_of_a_daemon_at_work(make_site: MakeSite, promtool: AptProgram) -> None:
    site = make_site()
    site.set_option('metrics_listen = "off"', 'metrics_listen = "127.0.0.1:0"')
    site.start_daemon()
    site.server.execute("CREATE TABLE visits (id int PRIMARY KEY)")
    site.wait_durable()
    site("backup")
    # Before its first value a metric is a name without a line, and nothing of it is judged.
    names = {name for name, _ in metric_names() if not name.startswith(BESIDE)} - FORECASTS
    text = ""
    missing = names

    def has_all() -> bool:
        nonlocal text, missing
        text = scrape(site)
        missing = names - set(re.findall(r"^(pitr_\w+)", text, re.MULTILINE))
        if missing:
            print(f"without a value: {sorted(missing)}")
        return not missing

    wait_until(has_all, "every metric has a value")
    assert promtool.must("check", "metrics", stdin=text) == ""
    assert site.daemon.stop() == 0, site.daemon.tail()


def test_promtool_accepts_the_rules_of_the_examples(promtool: AptProgram) -> None:
    said = promtool.must("check", "rules", RULES)
    assert f"SUCCESS: {RULES.read_text().count('- alert:')} rules found" in said


Alerts = Mapping[tuple[str, str], Sequence[tuple[Mapping[str, str], str]]]


def case(series: Mapping[str, str], alerts: Alerts) -> dict[str, object]:
    """Return a case for ``promtool test rules``: a value a minute, and the alerts that are up at a minute.

    Of each its labels and its summary; two cases of one alert show when it is not up yet, or no more.
    """
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {
                "alertname": name,
                "eval_time": at,
                "exp_alerts": [
                    {"exp_labels": dict(labels), "exp_annotations": {"summary": summary}}
                    for labels, summary in up
                ],
            }
            for (name, at), up in alerts.items()
        ],
    }


PAGE = {"severity": "page"}
DB1 = {**PAGE, "instance": "db1:9187"}
US = {**DB1, "region": "us"}
CASES = {
    "rpo": case(
        {f"pitr_rpo_seconds{{{HOST}}}": "1 60 61 95 155 0.4"},
        {
            ("PitrRpo", "1m"): [],
            ("PitrRpo", "2m"): [],
            ("PitrRpo", "4m"): [(DB1, "155 s of commits would be lost with the host of db1:9187")],
            ("PitrRpo", "5m"): [],
        },
    ),
    "absent": case(
        {f"pitr_rpo_seconds{{{HOST}}}": "1 1 stale"},
        {("PitrAbsent", "1m"): [], ("PitrAbsent", "4m"): [(PAGE, "no daemon is running")]},
    ),
    "two-writers": case(
        {
            f'pitr_events_total{{{HOST},kind="writers-conflict"}}': "0 0 1x4",
            # What an earlier run of another host told, and nothing since.
            'pitr_events_total{instance="db2:9187",kind="writers-conflict"}': "3x6",
        },
        {
            ("PitrTwoWriters", "1m"): [],
            ("PitrTwoWriters", "4m"): [
                (
                    {**DB1, "kind": "writers-conflict"},
                    "two writers for the archive of db1:9187, or it was set back: pitr log, docs/failover.md",
                )
            ],
        },
    ),
    "region-down": case(
        {
            f'pitr_region_healthy{{{HOST},region="eu"}}': "1x12",
            # Away for ever, and away for less than it takes to call a person.
            f'pitr_region_healthy{{{HOST},region="us"}}': "1 0x11",
            f'pitr_region_healthy{{{HOST},region="ap"}}': "1 0 0 0 1 0 0 0 1x4",
        },
        {
            ("PitrRegionDown", "5m"): [],
            ("PitrRegionDown", "7m"): [
                (US, "the region us does not answer as it should: pitr status says how")
            ],
        },
    ),
    "backup-failed": case(
        {f"pitr_backup_last_success{{{HOST}}}": "1 0 1"},
        {
            ("PitrBackupFailed", "0m"): [],
            ("PitrBackupFailed", "1m"): [(DB1, "the last attempt at a base backup failed")],
            ("PitrBackupFailed", "2m"): [],
        },
    ),
    "backup-old": case(
        # The clock of these cases begins at 0, and so the backup ended then.
        {f"pitr_backup_last_completed_timestamp_seconds{{{HOST}}}": "0x2900"},
        {
            ("PitrBackupOld", "2880m"): [],
            ("PitrBackupOld", "2881m"): [(DB1, "no base backup was completed in two days")],
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_alert_is_up_when_it_should_be_and_not_before(
    name: str, tmp_path: Path, promtool: AptProgram
) -> None:
    whole = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [CASES[name]]}
    # JSON is YAML.
    (tmp_path / "case.yml").write_text(json.dumps(whole))
    assert "SUCCESS" in promtool.must("test", "rules", tmp_path / "case.yml")
