"""``pitr verify`` as people run it: a real archive in three regions, a verifier with a key of its own."""

from __future__ import annotations

import json
from pathlib import Path

from fix_cli import Done, MakeSite, Site


def verified_site(make_site: MakeSite, config: str = "") -> Site:
    """Return a site with a backup, some rows, a verifier's key and a table [verify]."""
    site = make_site(17)
    site.config.write_text(
        site.config.read_text()
        + f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
        + f'organisation = "St. Elsewhere"\nevery = "never"\nscratch_dir = "{site.folder}/scratch"\n{config}'
    )
    site("verifier", "init")
    site.server.execute("CREATE TABLE patients (id int PRIMARY KEY, name text NOT NULL)")
    site.server.execute("INSERT INTO patients SELECT n, 'p' || n FROM generate_series(1, 1000) n")
    site.start_daemon()
    site.server.execute("INSERT INTO patients VALUES (5000, 'late')")
    site.wait_durable()
    return site


def results(done: Done) -> dict[str, str]:
    return {check["id"]: check["result"] for check in done.data["checks"]}


def test_the_latest_moment_is_proved_and_the_report_signed(make_site: MakeSite) -> None:
    site = verified_site(make_site)
    reports = site.folder / "reports"
    done = site("verify", "--latest", "--reports", reports, "--json")
    print([(c["id"], c["ms"]) for c in done.data["checks"]], done.data["recovery_time_ms"])
    found = results(done)
    assert {check: result for check, result in found.items() if result != "PASSED"} == {
        "C11": "SKIPPED",
        "C15": "SKIPPED",
        "C16": "SKIPPED",
    }
    assert done.data["verdict"] == "PASSED"
    assert done.data["segregation"]["network"]["is_distinct"] is True
    assert list(Path(site.folder / "scratch").glob("0*")) == []
    assert len(list(reports.glob("00000001-*.json"))) == 2
    entries = [json.loads(line) for line in (reports / "log.jsonl").read_text().splitlines()]
    kinds = [entry["kind"] for entry in entries]
    assert kinds == ["key-event", "verification-intended", "verification-ended"]
