"""``pitr verify`` as people run it: a real archive in three regions, a verifier with a key of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fix_cli import Done, MakeSite, Site, wait_until
from fix_pages import read_pages
from fix_schema import REPORT_SCHEMA, schema_errors
from fix_verify_site import (
    VERIFY_TIMEOUT_S,
    audit,
    left_in_scratch,
    log_of,
    reports_dir,
    results,
    verified_site,
    verify,
)

from pitr.pipeline.sign import payload_of
from pitr.postgres.processes import is_alive
from verifiers.verify_target import parse_stretches, random_moment, seed_sha256


@pytest.fixture(scope="module")
def site(module_make_site: MakeSite) -> Site:
    site = verified_site(module_make_site(17), 'every = "never"\n')
    site.server.execute("INSERT INTO patients VALUES (5001, 'later')")
    site.wait_durable()
    return site


def predicate_of(site: Site, done: Done) -> dict[str, Any]:
    """Return what the exported report of a run says."""
    stem = f"{done.data['number']:08d}-{done.data['report']}"
    envelope = (site.folder / "reports" / f"{stem}.json").read_bytes()
    predicate: dict[str, Any] = json.loads(payload_of(envelope))["predicate"]
    return predicate


def test_the_latest_moment_is_proved_and_the_report_signed(site: Site) -> None:
    done = verify(site, "--latest", "--reports", reports_dir(site))
    not_passed = {check: result for check, result in results(done).items() if result != "PASSED"}
    assert not_passed == {"C11": "SKIPPED", "C15": "SKIPPED", "C16": "SKIPPED"}
    assert (done.data["verdict"], done.data["rto_met"]) == ("PASSED", True)
    assert done.data["segregation"]["network"]["is_distinct"] is True
    assert left_in_scratch(site) == []
    stem = f"{done.data['number']:08d}-{done.data['report']}"
    for ending in ("json", "html", "test-result.json"):
        assert (reports_dir(site) / f"{stem}.{ending}").stat().st_size > 0
    mine = [entry["kind"] for entry in log_of(site) if entry["run_id"] == done.data["run"]]
    assert mine == ["verification-intended", "verification-ended", "observed"]
    exit_code, found = audit(site)
    assert exit_code == 0, found
    envelope = (site.folder / "reports" / f"{stem}.json").read_bytes()
    assert schema_errors(REPORT_SCHEMA, json.loads(payload_of(envelope))) == []
    assert predicate_of(site, done)["trend"] == []
    spans = predicate_of(site, done)["recoverability"]
    mapped = site("timeline", "--json").data
    regions = {region for span in mapped["branches"][0]["spans"] for region in span["regions"]}
    assert {span["state"] for span in spans} == {"restorable"}
    assert {region for span in spans for region in span["regions"]} == regions
    assert len(regions) == 3
    assert spans[0]["start_lsn"] == mapped["first"]["lsn"]


def test_the_next_report_repeats_the_figures_of_the_one_before_and_is_set_as_pdf(site: Site) -> None:
    first, done = (verify(site, "--latest", "--reports", site.folder / "reports") for _ in range(2))
    (*_, row) = predicate_of(site, done)["trend"]
    before = predicate_of(site, first)
    assert (row["series_seq"], row["overall"]) == (first.data["number"], "PASSED")
    assert row["recovery_time_ms"] == before["timings"]["recovery_time_ms"] > 0
    assert row["wal_replay_done_ms"] == before["timings"]["wal_replay_done"]["ms"]
    assert row["bytes"] == before["timings"]["bytes"] > 0
    (told,) = [one for one in done.data["limits"] if "forecast" in one]
    assert re.search(r"the latest moment was forecast to take about .* from \d+ measured recover", told)
    site("report", "show", "--pdf", site.folder / "report.pdf")
    pages = read_pages((site.folder / "report.pdf").read_bytes())
    for words in ("PASSED", "St. Elsewhere", "What was not tested, and why", "Trend"):
        assert words in pages[0].text


def test_a_random_moment_is_what_the_logged_commitment_says(site: Site) -> None:
    done = verify(site, "--random", "--reports", reports_dir(site))
    sampling = done.data["sampling"]
    intent = next(
        entry
        for entry in log_of(site)
        if entry["run_id"] == done.data["run"] and entry["kind"] == "verification-intended"
    )
    assert intent["facts"]["seed_sha256"] == sampling["seed_sha256"] == seed_sha256(sampling["seed"])
    assert sampling["seed"] not in json.dumps(intent)
    moment = random_moment(sampling["seed"], parse_stretches(intent["facts"]["stretches"]))
    assert datetime.fromisoformat(done.data["target"]["value"]) == moment
    assert done.data["verdict"] == "PASSED"
    exit_code, found = audit(site)
    assert exit_code == 0, found


@pytest.mark.slow
def test_regions_take_turns_and_one_can_be_lost(site: Site) -> None:
    first = verify(site, "--latest").data["region"]
    second = verify(site, "--latest", "--without-region", first)
    assert second.data["region"] != first
    assert any(f"region {first} was cut off" in limit for limit in second.data["limits"])
    refused = verify(site, "--latest", "--region", first, "--without-region", first, exit_code=2)
    assert "cannot be read from and be lost" in refused.error["message"]


def test_a_query_of_the_owners_that_finds_rows_fails_the_run_with_exit_code_7(site: Site) -> None:
    checks = site.folder / "checks"
    checks.mkdir()
    (checks / "no-late-patients.sql").write_text("SELECT * FROM patients WHERE id > 4999")
    (checks / "all-named.sql").write_text("SELECT * FROM patients WHERE name = ''")
    done = verify(site, "--latest", "--checks", checks, exit_code=7)
    found = results(done)
    assert (found["C15.no-late-patients"], found["C15.all-named"]) == ("FAILED", "PASSED")
    assert done.data["verdict"] == "FAILED"
    assert "C15.no-late-patients" in done.error["why"]
    assert left_in_scratch(site) == []


def test_a_report_that_cannot_be_exported_is_there_all_the_same(site: Site) -> None:
    taken = site.folder / "taken"
    taken.write_text("no folder")
    done = verify(site, "--latest", "--reports", taken)
    assert (done.data["verdict"], done.data["reports_dir"]) == ("PASSED", None)
    assert f"could not be exported to {taken}" in " ".join(done.object["warnings"])
    site("report", "export", reports_dir(site))
    ended = [entry for entry in log_of(site) if entry["run_id"] == done.data["run"]]
    assert "PASSED" in [entry["facts"].get("outcome") for entry in ended]


def test_without_a_key_an_identity_or_a_target_nothing_is_begun(site: Site) -> None:
    no_key = verify(site, "--latest", "--key", site.folder / "nosuch", exit_code=8)
    assert no_key.error["next"] == "pitr verifier init"
    hosts = verify(site, "--latest", "--key", site.config.parent / "signing.key", exit_code=2)
    assert "is the one that writes archive" in hosts.error["message"]
    future = verify(site, "--at", "2999-01-01T00:00:00Z", exit_code=4)
    # What was refused before it began is told of as killed by nobody.
    for refused in (hosts, future, verify(site, "--at", "2999-01-01T00:00:00Z", exit_code=4)):
        assert "was killed" not in refused.stderr
    assert left_in_scratch(site) == []
    both = verify(site, "--latest", "--random", exit_code=2)
    assert "exclude each other" in both.error["message"]


def test_without_a_configuration_urls_an_identity_and_a_key_are_enough(site: Site) -> None:
    key = site.folder / "auditor" / "verifier.key"
    site.program("verifier", "init", "--key", key)
    words: list[object] = ["verify", "--json", "--latest", "--identity", site.identity]
    for region in site.regions[:2]:
        words += ["--from", region.url]
    refused = site.program(*words, exit_code=2)
    assert "the verifier's key is needed" in refused.error["message"]
    words += ["--key", key, "--scratch", site.folder / "scratch", "--reports", site.folder / "audited"]
    done = site.program(*words, timeout_s=VERIFY_TIMEOUT_S)
    assert (done.data["verdict"], done.data["rto_met"]) == ("PASSED", None)
    assert done.data["region"] == site.regions[0].url
    assert any("there was no configuration" in limit for limit in done.data["limits"])
    assert left_in_scratch(site) == []
    (report,) = (site.folder / "audited").glob("00000001-*.html")
    assert report.stat().st_size > 0
    log = (site.folder / "audited" / "log.jsonl").read_text()
    assert done.data["run"] in log
    mine = site.program("-c", site.config, "report", "list", "--json").data["reports"]
    assert done.data["report"] not in json.dumps(mine)


def test_a_moment_that_cannot_be_restored_is_said_and_logged(site: Site) -> None:
    verify(site, "--at", "2020-01-01T00:00:00Z", exit_code=4)
    verify(site, "--latest", "--reports", reports_dir(site))
    ended = [e for e in log_of(site) if e["kind"] == "verification-ended"]
    abandoned = [e for e in ended if e["facts"]["outcome"] == "ABANDONED"]
    assert any("is not restorable" in e["facts"]["reason"] for e in abandoned)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_is_found_wiped_and_logged(site: Site, how: signal.Signals) -> None:
    log = site.folder / "killed.log"
    # As the daemon does it, the one time that is due.
    scheduled = ["--scheduled"] if how is signal.SIGKILL else []
    site.config.write_text(site.config.read_text().replace('every = "never"', 'every = "30d"'))
    process = site.program.begin("-c", site.config, "verify", "--latest", *scheduled, log=log)
    scratch = site.folder / "scratch"

    def has_server() -> bool:
        assert process.poll() is None, log.read_text()
        return any(scratch.glob("0*/data/postmaster.pid"))

    wait_until(has_server, "the scratch server runs", timeout_s=120)
    (pid_file,) = scratch.glob("0*/data/postmaster.pid")
    run = pid_file.parents[1].name
    pid = int(pid_file.read_text().split("\n", 1)[0])
    process.send_signal(how)
    process.wait(120)
    if how is signal.SIGKILL:
        assert left_in_scratch(site) == [run]
    else:
        assert left_in_scratch(site) == []
    done = verify(site, "--latest", *scheduled, "--reports", reports_dir(site))
    site.config.write_text(site.config.read_text().replace('every = "30d"', 'every = "never"'))
    assert left_in_scratch(site) == []
    wait_until(lambda: not is_alive(pid), "the killed run's server has ended", timeout_s=30)
    kinds = [(e["kind"], e["facts"].get("outcome")) for e in log_of(site) if e["run_id"] == run]
    assert kinds == [("verification-intended", None), ("verification-ended", "ABANDONED")]
    assert done.data["verdict"] == "PASSED"
    first, again = (intent_of(site, one) for one in (run, done.data["run"]))
    assert again.get("repeats") == (run if scheduled else None)
    assert (first["scheduled_at"] is None) == (again["scheduled_at"] is None) == (not scheduled)


# As the daemon does it.
STARTER = """
import pathlib, sys, threading
from cli.own_command import own_command
from cli.own_process import run_own
run_own(own_command(), pathlib.Path(sys.argv[1]), ("verify", "--latest"), 600.0, threading.Event())
"""


def test_a_run_ends_and_cleans_up_when_the_daemon_that_started_it_is_killed(site: Site) -> None:
    scratch, env = site.folder / "scratch", site.program.env()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(site.config)], env=env, cwd=site.folder, start_new_session=True
    )
    wait_until(lambda: any(scratch.glob("0*/data/postmaster.pid")), "the scratch server runs", timeout_s=120)
    (run,) = left_in_scratch(site)
    starter.kill()
    starter.wait(30)
    wait_until(lambda: not (scratch / f"run-{run}.lock").exists(), "the run has ended too", timeout_s=120)
    assert left_in_scratch(site) == []
    site("report", "export", reports_dir(site))
    (ended,) = [e for e in log_of(site) if e["run_id"] == run and e["kind"] == "verification-ended"]
    assert ended["facts"]["outcome"] == "ABANDONED"


def intent_of(site: Site, run: str) -> dict[str, Any]:
    """Return what a run's intent says."""
    (facts,) = [
        one["facts"]
        for one in log_of(site)
        if one["run_id"] == run and one["kind"] == "verification-intended"
    ]
    assert isinstance(facts, dict)
    return facts


@pytest.mark.timeout(900)
# It waits for minutes.
@pytest.mark.slow
def test_the_daemon_verifies_when_it_is_due_and_catches_up_once(make_site: MakeSite) -> None:
    site = verified_site(
        make_site(17),
        'every = "60s"\ntarget = "latest"\nreports_dir = "{FOLDER}"\n'.replace("{FOLDER}", "r"),
    )
    folder = site.config.parent / "r"

    def reports() -> int:
        site.daemon.check_alive()
        return len(list(folder.glob("*.html")))

    wait_until(lambda: reports() >= 1, f"a scheduled report; {site.daemon.tail()}", timeout_s=400)
    said = site("status").stdout
    assert "verify   " in said
    site.daemon.stop()
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    intents = [e for e in entries if e["kind"] == "verification-intended"]
    first = datetime.fromisoformat(intents[-1]["facts"]["scheduled_at"])
    count = reports_in(folder)
    # Two of its times pass with nobody there.
    time.sleep(max(0.0, 125 - (datetime.now(first.tzinfo) - first).total_seconds()))
    site.daemon.start()
    # The log is exported last, after the reports that it tells of.
    wait_until(
        lambda: reports() > count and "verification-missed" in (folder / "log.jsonl").read_text(),
        f"a report that catches up, and what was missed; {site.daemon.tail()}",
        timeout_s=400,
    )


def reports_in(folder: Path) -> int:
    return len(list(folder.glob("*.html")))
