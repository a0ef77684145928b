"""``pitr drill`` as people run it: real servers, three regions, a verifier with a key of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fix_cli import CHECKOUT, Done, MakeSite, Site, wait_until

DRILL_TIMEOUT_S = 600.0
SCENARIOS = CHECKOUT / "examples" / "drills"


@pytest.fixture(scope="module")
def site(module_make_site: MakeSite) -> Site:
    """A site with a backup, some rows, a verifier's key and drills that are held only when asked."""
    site = module_make_site(17)
    site.config.write_text(
        site.config.read_text()
        + f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
        + f'organisation = "St. Elsewhere"\nscratch_dir = "{site.folder}/scratch"\n'
        + 'every = "never"\nrpo = "1h"\nrto = "1h"\nowner = "dba"\n'
        + '\n[verify.drills]\ncomponents = "never"\nload = "2s"\n'
    )
    site("verifier", "init")
    site.server.execute("CREATE TABLE patients (id int PRIMARY KEY, name text NOT NULL)")
    site.server.execute("INSERT INTO patients SELECT n, 'p' || n FROM generate_series(1, 1000) n")
    site.daemon.start()
    # A full backup, on a machine that has other things to do.
    wait_until(lambda: site.flush_lsn() is not None and site.backups(), "a backup", timeout_s=600)
    site.server.execute("INSERT INTO patients VALUES (5000, 'late')")
    site.wait_durable(timeout_s=600)
    return site


def drill(site: Site, *words: object, exit_code: int = 0) -> Done:
    words = ("-c", site.config, "drill", *words, "--json")
    return site.program(*words, exit_code=exit_code, timeout_s=DRILL_TIMEOUT_S)


def listed(site: Site, *words: object) -> Any:
    """Return what ``pitr drill list`` says."""
    return drill(site, "list", *words).data


def results(done: Done) -> dict[str, str]:
    return {check["id"]: check["result"] for check in done.data["checks"]}


def check_of(done: Done, name: str) -> dict[str, Any]:
    (found,) = [check for check in done.data["checks"] if check["id"] == name]
    return found


def objects_of(site: Site) -> dict[str, bytes]:
    """Return what the regions hold of the archive, with what it holds."""
    return {
        f"{region.name}/{key}": path.read_bytes()
        for region in site.regions
        for key, path in region.objects().items()
        if not key.startswith(("log/", "reports/", "probe/", "heads/"))
    }


def audited(site: Site, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", "-S", str(CHECKOUT / "verifiers" / "pitr_audit.py")]
    words += ["--key", str(site.config.parent / "verifier.pub.pem"), str(folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def unhurried(site: Site, name: str) -> Path:
    """Return a shipped scenario with deadlines that a busy machine keeps as well."""
    text = (SCENARIOS / f"{name}.toml").read_text()
    assert '"4m"' in text
    path = site.folder / f"{name}.toml"
    path.write_text(text.replace('"4m"', '"40m"').replace('"1m"', '"10m"'))
    return path


def left_in_scratch(site: Site) -> list[str]:
    return sorted(path.name for path in (site.folder / "scratch").glob("0*"))


def test_every_part_of_a_recovery_is_tried_alone(site: Site) -> None:
    before = objects_of(site)
    done = drill(site, "start", "components", "--reports", site.folder / "reports")
    found = results(done)
    regions = {f"D01.{region.name}" for region in site.regions}
    assert {name: found[name] for name in (*regions, "D02", "D03", "D04")} == dict.fromkeys(
        (*regions, "D02", "D03", "D04"), "PASSED"
    )
    assert found["D05"] in ("PASSED", "WARNED")
    assert (done.data["verdict"], done.data["report_type"]) == ("PASSED", "scrub")
    after = objects_of(site)
    assert before.items() <= after.items(), "a drill deletes and changes nothing"
    assert left_in_scratch(site) == []
    said = audited(site, site.folder / "reports")
    assert said.returncode == 0, said.stdout + said.stderr


def test_a_region_that_cannot_be_reached_fails_its_own_check(site: Site) -> None:
    gone, *others = site.regions
    gone.take_away()
    try:
        done = drill(site, "start", "components", exit_code=7)
    finally:
        gone.give_back()
    found = results(done)
    assert found[f"D01.{gone.name}"] == "FAILED"
    assert {found[f"D01.{region.name}"] for region in others} == {"PASSED"}
    assert (found["D02"], found["D03"]) == ("PASSED", "PASSED")
    opened = {one["id"]: one for one in done.data["findings"]}
    assert opened[f"F-D01.{gone.name}"]["owner"] == "dba"
    # The region is back: the retest closes the finding in its own report.
    ref = f"{done.data['number']}/F-D01.{gone.name}"
    again = drill(site, "start", "components", "--retests", ref, "--corrective-action", "mounted again")
    (closed,) = [one for one in again.data["findings"] if one["id"] == ref]
    assert (closed["status"], closed["corrective_action"]) == ("closed", "mounted again")
    assert closed["retest_report_id"] == again.data["report"]


@pytest.mark.timeout(900)
def test_a_lost_region_is_not_missed_and_clients_are_served_again(site: Site) -> None:
    lost, *others = site.regions
    before = objects_of(site)
    done = drill(
        site,
        *("start", unhurried(site, "region-loss"), "--without-region", lost.name),
        *("--reports", site.folder / "reports"),
    )
    found = results(done)
    steps = ("declare", "cut", "restore", "promote", "load", "checks")
    assert {found[f"D10.{name}"] for name in steps} == {"PASSED"}
    assert (found["D11"], found["D12"]) == ("PASSED", "PASSED")
    assert lost.name not in check_of(done, "D11")["observed"]
    assert done.data["region"] in {region.name for region in others}
    assert (done.data["verdict"], done.data["report_type"]) == ("PASSED", "quarterly_drill")
    assert (done.data["rto_met"], done.data["rpo_met"]) == (True, True)
    service = done.data["degradation"]["service_degradation"]
    assert service["window_ms"] > 0
    assert service["latency_us_before"] is None
    assert service["latency_us_after"]["p95"] > 0
    errors = {one["class"] for one in done.data["degradation"]["error_rate"]["errors"]}
    assert "no service" in errors
    assert before.items() <= objects_of(site).items(), "a drill deletes and changes nothing"
    assert left_in_scratch(site) == []
    log = [json.loads(line) for line in (site.folder / "reports" / "log.jsonl").read_text().splitlines()]
    mine = [entry for entry in log if entry["run_id"] == done.data["run"]]
    assert [entry["kind"] for entry in mine] == ["drill-intended", "drill-ended", "observed"]
    assert mine[0]["facts"]["without_region"] == lost.name
    said = audited(site, site.folder / "reports")
    assert said.returncode == 0, said.stdout + said.stderr
    shown = site("drill", "report", done.data["number"]).stdout
    assert "clients had no service for" in shown
    told = listed(site)
    assert [one["drill"] for one in told["planned"]] == ["components", "failover", "full", "disaster"]
    (row,) = [one for one in told["drills"] if one["report_id"] == done.data["report"]]
    assert row["metrics"]["recovery_time_ms"] == done.data["recovery_time_ms"] > 0


FULL = """
name = "late"
kind = "full"

[[step]]
name = "declare"
action = "mark-failure"

[[step]]
name = "notice"
action = "wait"
duration = "10s"

[[step]]
name = "restore"
action = "restore"
target = "latest"

[[step]]
name = "promote"
action = "start-service"

[[step]]
name = "checks"
action = "checks"
"""


@pytest.mark.timeout(900)
def test_what_is_archived_after_the_failure_is_not_restored(site: Site) -> None:
    """Production goes on, and is archived, while the drill waits: that saves nothing that was lost."""
    scenario = site.folder / "late.toml"
    scenario.write_text(FULL)
    ends = threading.Event()

    def go_on() -> None:
        number = 10_000
        while not ends.wait(0.2):
            site.server.execute(f"INSERT INTO patients VALUES ({number}, 'after')")
            number += 1

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        done = drill(site, "start", scenario)
    finally:
        ends.set()
        writer.join()
    said = site("report", "show", done.data["number"], "--json").data["predicate"]
    (declared,) = [one for one in said["result"]["limits"] if one.startswith("the failure was declared at ")]
    failure_at = declared.split()[5].rstrip(";")
    assert said["request"]["kind"] == "latest"
    assert said["data_loss"]["last_recovered"]["time"] <= failure_at
    assert "D12" in results(done)
    assert done.data["verdict"] == "PASSED"


@pytest.mark.timeout(900)
def test_an_objective_that_is_missed_is_a_finding_that_its_retest_closes(site: Site) -> None:
    site.set_option('rto = "1h"', 'rto = "1ms"')
    try:
        slow = drill(site, "start", "full", "--due", "3d")
    finally:
        site.set_option('rto = "1ms"', 'rto = "1h"')
    assert (slow.data["verdict"], slow.data["rto_met"]) == ("PASSED", False)
    (finding,) = slow.data["findings"]
    assert (finding["id"], finding["status"], finding["owner"]) == ("F-RTO", "open", "dba")
    ref = f"{slow.data['number']}/F-RTO"
    opened = {one["finding"]: one for one in listed(site, "--findings")["findings"]}
    assert opened[ref]["due_at"] is not None
    unknown = drill(site, "start", "full", "--retests", "999/F-RTO", exit_code=2)
    assert unknown.error["next"] == "pitr drill list --findings"
    said = ["--root-cause", "a slow disk", "--participant", "B. Operator", "DBA", "--notified", "on-call"]
    fast = drill(site, "start", "full", "--retests", ref, *said)
    assert [(one["id"], one["status"]) for one in fast.data["findings"]] == [(ref, "closed")]
    assert fast.data["findings"][0]["root_cause"] == "a slow disk"
    people = site("report", "show", str(fast.data["number"]), "--json").data["predicate"]["people"]
    assert people["participants"] == [{"name": "B. Operator", "role": "DBA"}]
    assert people["notified"] == ["on-call"]
    still = {one["finding"] for one in listed(site, "--findings")["findings"]}
    assert ref not in still
    every = listed(site, "--findings", "--all")["findings"]
    assert {one["finding"]: one["status"] for one in every}[ref] == "closed"


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_what_was_spoilt_is_not_in_the_service_that_is_rebuilt(site: Site) -> None:
    site.server.execute("INSERT INTO patients VALUES (6000, 'good')")
    moment = site.server.value("SELECT clock_timestamp()")
    site.server.execute("UPDATE patients SET name = 'encrypted'")
    site.wait_durable(timeout_s=600)
    path = unhurried(site, "primary-loss")
    query = "SELECT 'not there' WHERE (SELECT name FROM patients WHERE id = 6000) IS DISTINCT FROM 'good'"
    text = path.read_text().replace('target = "latest"', 'target = "before-corruption"')
    path.write_text(text.replace("SELECT gid FROM pg_prepared_xacts WHERE", f"{query} --"))
    done = drill(site, "start", path, "--corrupted-at", moment.isoformat())
    found = results(done)
    assert found["D10.prepared-transactions"] == "PASSED", "the good row is there, as it was"
    assert (found["C09"], found["D12"]) == ("PASSED", "SKIPPED")
    assert done.data["verdict"] == "PASSED"
    assert [one["name"] for one in done.data["ransomware"]["indicators"]][1] == "files that do not belong"
    assert done.data["ransomware"]["last_clean_point"] is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_drill_that_was_missed_is_caught_up_once_and_logged(site: Site) -> None:
    site.set_option('components = "never"', 'components = "60s"')
    try:
        first = drill(site, "start", "components", "--scheduled")
        begun = time.monotonic()
        site.set_option('components = "60s"', 'components = "30d"')
        assert drill(site, "start", "components", "--scheduled").data == {"is_not_due": True}
        site.set_option('components = "30d"', 'components = "60s"')
        # Two of its times have passed then with nobody there.
        time.sleep(max(0.0, 125 - (time.monotonic() - begun)))
        second = drill(site, "start", "components", "--scheduled")
    finally:
        site.config.write_text(site.config.read_text().replace('components = "60s"', 'components = "never"'))
    assert second.data["number"] == first.data["number"] + 1, "it was caught up once"
    told = listed(site)
    missed = [one for one in told["drills"] if one["outcome"] == "MISSED"]
    assert missed
    assert {one["drill"] for one in missed} == {"components"}
    assert next(one for one in told["planned"] if one["drill"] == "components")["missed"] == len(missed)


@pytest.mark.timeout(900)
def test_a_drill_that_is_killed_is_visible_and_settled_by_the_next(site: Site) -> None:
    log = site.folder / "killed.log"
    process = site.program.begin("-c", site.config, "drill", "start", "full", log=log)
    scratch = site.folder / "scratch"

    def has_server() -> bool:
        assert process.poll() is None, log.read_text()
        return any(scratch.glob("0*/data/postmaster.pid"))

    wait_until(has_server, "the scratch server runs", timeout_s=240)
    (pid_file,) = scratch.glob("0*/data/postmaster.pid")
    run = pid_file.parents[1].name
    process.send_signal(signal.SIGKILL)
    process.wait(120)
    assert [one["outcome"] for one in listed(site)["drills"]][-1] == "RUNNING"
    drill(site, "start", "components", "--reports", site.folder / "reports")
    assert left_in_scratch(site) == []
    entries = [json.loads(line) for line in (site.folder / "reports" / "log.jsonl").read_text().splitlines()]
    kinds = [(e["kind"], e["facts"].get("outcome")) for e in entries if e["run_id"] == run]
    assert kinds == [("drill-intended", None), ("drill-ended", "ABANDONED")]


def test_what_cannot_be_meant_is_refused_before_anything_is_logged(site: Site) -> None:
    before = listed(site)["drills"]
    for words, said in (
        (("components", "--at", "latest"), "components are not restored"),
        (("failover", "--without-region", "nosuch"), "there is no region 'nosuch'"),
        (("full", "--without-region", site.regions[0].name), "loses no region"),
        ((SCENARIOS / "ransomware.toml",), "no backup shows a sign of corruption"),
        (("failovr",), "cannot be read"),
    ):
        refused = drill(site, "start", *words, exit_code=2)
        assert said in refused.error["message"]
    assert listed(site)["drills"] == before
