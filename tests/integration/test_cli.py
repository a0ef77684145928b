"""The commands as people run them, on one cluster that all tests here share."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_cli import CHECKOUT, MakeSite, PitrProgram, Site, wait_until
from fix_terminal import on_a_terminal

from cli.commands import COMMANDS
from pitr.pipeline.keys import IdentityFile
from pitr.postgres.instance import Instance
from pitr.wal.lsn import LSN

REGIONS = 3


@pytest.fixture(scope="module")
def site(module_make_site: MakeSite) -> Iterator[Site]:
    """A cluster with a daemon that streams, one backup, and metrics on a free port."""
    site = module_make_site()
    site.set_option('metrics_listen = "off"', 'metrics_listen = "127.0.0.1:0"')
    site.start_daemon()
    site.server.execute("CREATE TABLE visits (id int PRIMARY KEY)")
    site.server.execute("INSERT INTO visits SELECT generate_series(1, 100)")
    site.wait_durable()
    yield site
    assert site.daemon.stop() == 0
    assert "all WAL received is durable" in site.daemon.tail()


def test_init_wrote_keys_for_their_owner_only_and_a_sheet_that_restores(site: Site) -> None:
    for path in (site.identity, site.config.parent / "signing.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    identity = IdentityFile.parse(site.identity.read_text())
    assert identity.repository in site.config.read_text()
    assert identity.identity.text() not in site.config.read_text()


def test_init_writes_nothing_over(site: Site) -> None:
    before = site.config.read_text()
    words = ["init", "--pg", site.server.dsn, "--non-interactive", "--dir", site.config.parent]
    for region in site.regions:
        words += ["--region", f"{region.name}={region.path}"]
    assert "exists already" in site.program(*words, exit_code=2).stderr
    assert site.config.read_text() == before


def test_init_refuses_what_the_configuration_would_refuse_before_it_makes_anything(
    site: Site, tmp_path: Path
) -> None:
    words = ["init", "--pg", site.server.dsn + " password=geheim", "--slot", "No Slot", "--non-interactive"]
    words += ["--region", f"eu={tmp_path / 'eu'}", "--dir", str(tmp_path / "new"), "--create-directories"]
    done = site.program(*words, exit_code=2)
    assert "cluster.dsn" in done.stderr
    assert "cluster.slot" in done.stderr
    assert "geheim" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_the_running_set_up_good(site: Site) -> None:
    done = site("doctor", "--identity", site.identity, "--json")
    findings = {finding["id"]: finding["severity"] for finding in done.data["findings"]}
    assert findings["server.slot"] == "ok"
    assert findings["keys.round_trip"] == "ok"
    assert findings["region.ap.create-only"] == "ok"
    assert findings["region.ap.place"] == "ok"
    for checked in (
        "server.wal_level",
        "server.grant.backup",
        "server.clock",
        "keys.signing",
        "host.postgres",
    ):
        assert findings[checked] == "ok", checked
    assert "fail" not in findings.values()


def test_doctor_fails_with_the_words_that_mend_it(site: Site) -> None:
    key = site.config.parent / "signing.key"
    key.chmod(0o644)
    done = site("doctor", exit_code=1)
    key.chmod(0o600)
    assert f"chmod 600 {key}" in done.stdout
    assert "error[PITR-1001]" in done.stderr


def test_status_says_how_fresh_what_is_safe_is(site: Site) -> None:
    wait_until(lambda: site("status", "--json").data["is_catalogue_complete"], "the catalogue is complete")
    seen = site("status", "--check-rpo", "60s", "--json").data
    assert seen["is_streaming"] is True
    assert seen["rpo_s"] < 60
    assert [region["is_healthy"] for region in seen["regions"]] == [True] * REGIONS
    assert seen["backup"]["last_result"] == "done"
    assert "streaming, RPO" in site("status").stdout


def test_status_as_a_probe_fails_with_5_when_nobody_runs(make_site: MakeSite) -> None:
    other = make_site(init=True)
    assert other("status", exit_code=10).stderr.startswith("error[PITR-0001]: no daemon is running")
    assert "error[PITR-5001]" in other("status", "--check-rpo", "60s", exit_code=5).stderr
    assert "not a duration" in other("status", "--check-rpo", "soon", exit_code=2).stderr


def test_backup_is_taken_by_the_daemon_and_then_listed(site: Site) -> None:
    done = site("backup", "--label", "before the upgrade", "--json")
    taken = done.data["backup"]
    assert (taken["label"], taken["findings"]) == ("before the upgrade", [])
    listed = site("backups", "list", "--json").data["backups"]
    assert taken["backup"] in [backup["backup"] for backup in listed]
    shown = site("backups", "show", "latest", "--json").data["backup"]
    assert shown["backup"] == taken["backup"]
    assert taken["backup"] in site("backups", "list").stdout
    assert "no backup 20200101" in site("backups", "show", "20200101", exit_code=2).stderr


def test_a_backup_that_one_region_missed_is_a_success_in_part(site: Site) -> None:
    site.regions[2].take_away()
    done = site("backup", "--json", exit_code=3)
    site.regions[2].give_back()
    assert done.data["lagging_regions"] == ["ap"]
    assert done.error["code"] == "PITR-3001"


def test_a_second_daemon_is_refused_with_6(site: Site) -> None:
    done = site("daemon", exit_code=6)
    assert str(site.daemon.pid) in done.stderr


def test_plan_gives_the_host_an_interval_and_the_reader_the_exact_place(site: Site) -> None:
    site.server.execute("INSERT INTO visits VALUES (1000)")
    moment = site.server.value("SELECT clock_timestamp()::text")
    site.server.execute("INSERT INTO visits VALUES (1001)")
    site.wait_durable()
    host = site("plan", moment, "--json").data["plan"]
    assert host["stop"] is None
    assert host["candidates"]
    reader = site("plan", moment, "--identity", site.identity, "--json").data["plan"]
    assert reader["stop"]["next_commit"] is not None
    first, last = host["candidates"][0], host["candidates"][-1]
    assert _lsn(first["start"]) <= _lsn(reader["stop"]["replay_end"]) <= _lsn(last["end"])
    assert "first gone" in site("plan", moment, "--identity", site.identity).stdout
    assert (host["resolved"]["is_exact"], reader["resolved"]["is_exact"]) == (False, True)
    assert host["resolved"]["timeline"] == reader["resolved"]["timeline"] == "00000001"
    assert reader["resolved"]["since"] == reader["stop"]["replay_end"]
    before, after = (reader["commits"][name] for name in ("before", "after"))
    assert after == reader["stop"]["next_commit"]
    assert after["xid"] == before["xid"] + 1
    assert before["at"] < after["at"]
    limits = host["commits"]
    assert limits["is_exact"] is False
    assert _lsn(limits["after"]["since"]) <= _lsn(after["lsn"]) < _lsn(limits["after"]["until"])
    if limits["before"] is not None:
        assert _lsn(limits["before"]["since"]) <= _lsn(before["lsn"]) < _lsn(limits["before"]["until"])
    assert "an interval from signed headers" in site("plan", moment).stdout


def test_every_kind_of_target_is_resolved_to_a_place_between_two_commits(site: Site) -> None:
    site.server.execute("INSERT INTO visits VALUES (1010)")
    site.server.execute("INSERT INTO visits VALUES (1011)")
    point = site.server.value("SELECT pg_create_restore_point('between')")
    site.server.execute("INSERT INTO visits VALUES (1012)")
    xids = site.server.execute(
        "SELECT xmin::text::int FROM visits WHERE id BETWEEN 1010 AND 1012 ORDER BY id"
    )
    first, second, third = (int(str(row[0])) for row in xids)
    site.wait_durable()
    identity = ["--identity", site.identity, "--json"]
    for words, around in (
        (["name:between"], (second, third)),
        ([f"lsn:{point}", "--exclusive"], (second, third)),
        ([f"xid:{second}"], (second, third)),
        ([f"xid:{second}", "--exclusive"], (first, second)),
    ):
        made = site("plan", *words, *identity).data["plan"]
        assert (made["commits"]["before"]["xid"], made["commits"]["after"]["xid"]) == around
        assert made["resolved"]["is_exact"] is True
    host = site("plan", f"xid:{second}", "--json").data["plan"]
    assert (host["resolved"], host["commits"]) == (None, None)
    assert "must be looked for in WAL" in site("plan", f"xid:{second}").stdout
    latest = site("plan", "latest", *identity).data["plan"]["commits"]
    assert (latest["before"]["xid"] >= third, latest["after"]) == (True, None)


def test_a_dry_run_shows_the_commits_around_the_stop(site: Site) -> None:
    site.server.execute("INSERT INTO visits VALUES (1020)")
    lsn = site.wait_durable()
    words = ["--to", f"lsn:{lsn}", "--into", site.folder / "nowhere", "--identity", site.identity]
    site.server.execute("INSERT INTO visits VALUES (1021)")
    site.wait_durable()
    done = site("restore", *words, "--exclusive", "--dry-run", "--json").data["plan"]["commits"]
    assert done["after"]["xid"] > done["before"]["xid"]
    shown = site("restore", *words, "--exclusive", "--dry-run").stdout
    assert "last kept" in shown
    assert "first gone" in shown


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def test_an_unclear_target_is_refused_with_4(site: Site) -> None:
    done = site("plan", "2026-11-23 14:05 IST", exit_code=4)
    assert "error[PITR-4001]" in done.stderr
    assert "Asia/Kolkata" in done.stderr


def test_a_zone_makes_a_local_time_clear(site: Site) -> None:
    done = site("--tz", "Europe/Berlin", "plan", "2020-01-01 12:00:00", exit_code=4)
    assert "2020-01-01T11:00:00Z is not restorable" in done.stderr
    assert "no time zone" in site("plan", "latest", "--tz", "Mars/Olympus", exit_code=2).stderr


def test_restore_needs_an_identity_and_a_yes(site: Site, tmp_path: Path) -> None:
    into = tmp_path / "restored"
    assert "identity" in site("restore", "--to", "latest", "--into", into, exit_code=2).stderr
    words = ["restore", "--to", "latest", "--into", into, "--identity", site.identity]
    assert "must be confirmed" in site(*words, exit_code=2).stderr
    done = site(*words, "--dry-run", "--json")
    end = done.data["plan"]["stop"]["replay_end"]
    assert [(one["region"], one["is_read"]) for one in done.data["regions"]] == [
        (name, True) for name in ("eu", "us", "ap")
    ]
    assert done.data["forecast"] is None
    assert done.data["plan"]["wal_bytes"] > 0
    # Of what happens later "latest" would say another end; and inclusive is the record that begins there.
    words[2] = f"lsn:{end}"
    shown = site("--tz", "Asia/Kolkata", *words, "--exclusive", "--dry-run").stdout
    assert f"replay ends at {end}" in shown
    assert f"into      {into}" in shown
    assert "regions   eu, us, ap, the next where one lacks an object" in shown
    assert "forecast  no runs yet: pitr verify measures the first" in shown
    assert re.search(r"WAL +\d+ segments, [0-9.]+ \w+, from", shown), shown
    # When the backup was complete, in UTC and on the reader's clock.
    assert re.search(r"backup .*, complete 20\S+Z = .*Asia/Kolkata", shown), shown
    assert not into.exists()


def test_a_person_is_asked_before_a_restore_and_sees_how_far_it_is(site: Site) -> None:
    into = site.folder / "asked"
    words = site.restore_words("latest", into, "--action", "none", "--no-verify")
    words = [word for word in words if word not in {"--yes", "--json"}]
    exit_code, shown = on_a_terminal(site.program, words, "n\n")
    assert f"Restore into {into}? [y/N]" in shown
    assert exit_code == 130, shown
    assert not into.exists()
    exit_code, shown = on_a_terminal(site.program, words, "y\n")
    assert exit_code == 0, shown
    assert "━" in shown
    assert (into / "PG_VERSION").exists()


def test_roots_restore_tells_before_it_begins_whose_the_files_will_be(site: Site) -> None:
    into = site.folder / "owned"
    words = site.restore_words("latest", into, "--action", "none", "--no-verify")
    assert "will belong to" not in site.program(*words, "--dry-run").stderr
    done = site.program(*words)
    owner = pwd.getpwuid(into.stat().st_uid).pw_name
    assert (f"the restored files will belong to {owner};" in done.stderr) is (
        os.geteuid() == 0 and owner != "postgres"
    ), str(done)
    if os.geteuid() != 0:
        return
    given = site.folder / "given"
    words = site.restore_words("latest", given, "--action", "none", "--no-verify", "--owner", "nobody")
    assert "will belong to" not in site.program(*words).stderr
    assert pwd.getpwuid(given.stat().st_uid).pw_name == "nobody"


def test_wal_is_listed_without_a_gap(site: Site) -> None:
    data = site("wal", "list", "--json").data
    assert [stretch["kind"] for stretch in data["stretches"]] == ["wal"]
    assert data["head"]["wal_end"]
    assert "there is no gap" in site("wal", "list", "--gaps-only").stdout


def test_the_catalogue_equals_the_regions_and_a_change_in_it_is_found(site: Site) -> None:
    wait_until(lambda: site("status", "--json").data["is_catalogue_complete"], "the catalogue is complete")
    done = site("catalogue", "check")
    assert "equals what the regions hold" in done.stdout
    assert "signed and linked" in done.stdout
    assert "error[PITR-6001]" in site("catalogue", "rebuild", exit_code=6).stderr
    other = site.folder / "rebuilt.sqlite"
    assert site("catalogue", "rebuild", "--out", other, "--json").data["rows"] > 3
    with sqlite3.connect(other) as connection:
        assert connection.execute("SELECT count(*) FROM backups").fetchone()[0] >= 1


def test_metrics_have_the_names_of_the_document(site: Site) -> None:
    found = [line for line in site.daemon.tail().splitlines() if "address=http" in line]
    address = found[0].split("address=")[1].split()[0]
    with urllib.request.urlopen(address, timeout=20) as answer:
        text = answer.read().decode()
    values = {
        line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")
    }
    assert values["pitr_wal_streaming"] == 1
    assert values["pitr_wal_durable_lsn_bytes"] > 0
    assert values["pitr_wal_received_lsn_bytes"] >= values["pitr_wal_shipped_lsn_bytes"]
    assert values["pitr_wal_shipped_lsn_bytes"] >= values["pitr_wal_durable_lsn_bytes"]
    assert values["pitr_wal_lag_bytes"] >= 0
    assert 0 <= values["pitr_rpo_seconds"] < 60
    for region in ("eu", "us", "ap"):
        assert values[f'pitr_region_healthy{{region="{region}"}}'] == 1
        assert values[f'pitr_region_rpo_seconds{{region="{region}"}}'] >= 0
        assert values[f'pitr_region_repairs_pending{{region="{region}"}}'] >= 0
    assert values["pitr_backup_last_success"] == 1
    assert 0 < time.time() - values["pitr_backup_last_completed_timestamp_seconds"] < 3600
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    document = (CHECKOUT / "docs/metrics.md").read_text()
    missing = [name for name in names if f"`{name}`" not in document]
    assert not missing


def test_a_daemon_that_was_stopped_answers_in_json_too(make_site: MakeSite) -> None:
    other = make_site()
    answer = other.folder / "answer"
    process = other.program.begin("-c", other.config, "--json", "-q", "daemon", log=answer)
    try:
        wait_until(lambda: other.flush_lsn() is not None, "the daemon streams")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(30)
    (line,) = [line for line in answer.read_text().splitlines() if line.startswith("{")]
    said = json.loads(line)
    assert (said["command"], said["ok"], said["data"]["is_complete"]) == ("daemon", True, True)
    assert said["data"]["durable_lsn"] == said["data"]["received_lsn"]


def test_the_control_socket_stops_the_daemon(make_site: MakeSite) -> None:
    from cli.control import ControlRequest, ask_daemon

    other = make_site()
    other.start_daemon(backups=0)
    path = other.state_dir / "control.sock"
    assert ask_daemon(path, ControlRequest("repair"), timeout_s=20)["unreached"] == []
    assert ask_daemon(path, ControlRequest("stop"), timeout_s=20) == {"is_stopping": True}
    wait_until(lambda: not other.daemon.is_running, "the daemon has ended")


def test_a_backup_without_a_daemon_streams_its_own_wal(make_site: MakeSite) -> None:
    other = make_site()
    assert "pitr backup --standalone" in other("backup", exit_code=10).stderr
    # The slot is there first, so nothing of what the backup needs can be gone.
    kept_from = other.restart_lsn()
    done = other("backup", "--standalone", "--json").data
    assert done["lagging_regions"] == []
    assert kept_from <= LSN.parse(done["backup"]["start_lsn"])
    assert other("plan", "immediate", "--identity", other.identity).exit_code == 0


def test_systemd_is_told_when_the_daemon_is_ready_and_when_it_stops(make_site: MakeSite) -> None:
    other = make_site()
    address = other.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        other.program.environment = {**other.program.environment, "NOTIFY_SOCKET": str(address)}
        other.daemon.start()
        assert manager.recv(100) == b"READY=1"
        assert other.daemon.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_a_restored_cluster_joins_as_the_next_epoch_that_leaves_its_parent_at_the_fork(
    make_site: MakeSite, request: pytest.FixtureRequest
) -> None:
    other = make_site()
    other.start_daemon()
    other.server.execute("CREATE TABLE t (i int)")
    other.wait_durable()
    assert other.daemon.stop() == 0
    into = other.folder / "restored"
    restored = other.restore("latest", into).data
    own = other.server.instance
    second = Instance(
        own.installation, into, user=own.user, socket_dir=other.folder / "s", port=5432, log_path=into / "log"
    )
    second.start({"listen_addresses": ""})
    request.addfinalizer(second.kill)
    words = ["init", "--pg", second.dsn, "--identity", other.identity, "--non-interactive", "--json"]
    words += ["--dir", other.folder / "second", "--metrics", "off", "--quorum", 2]
    for region in other.regions:
        words += ["--region", f"{region.name}={region.url}"]
    data = other.program(*words).data
    assert data["archive"].endswith("/00000002")
    assert data["parent"] == {"epoch": 1, "timeline": "00000001", "lsn": restored["replay_end"]}
    (other.folder / "second" / "pitr.toml").unlink()
    again = other.program(*words).data
    assert (again["archive"], again["is_new_epoch"]) == (data["archive"], False)
    shutil.rmtree(other.folder / "second")


def test_help_is_fast_and_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from cli.main import run_cli; run_cli(['--help']);"
        "heavy = {'boto3', 'psycopg', 'pydantic', 'rich', 'structlog', 'numpy', 'cryptography'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Back up PostgreSQL" in done.stdout


def test_no_configuration_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    pitr = PitrProgram(tmp_path)
    assert "pitr init" in pitr("status", exit_code=10).stderr
    assert "no configuration file" in pitr("-c", tmp_path / "none", "status", exit_code=2).stderr
    answer = pitr("status", "--json", exit_code=10).object
    assert (answer["ok"], answer["command"], answer["error"]["code"]) == (False, "status", "PITR-0001")


@pytest.mark.parametrize(
    "content",
    [b"\x00\xff garbage", b"[cluster]\nname = 'ma", b"[cluster]\nnme = 1\n", None],
    ids=["garbage", "cut", "mistakes", "directory"],
)
def test_a_configuration_that_cannot_be_used_is_2_and_says_what_why_next(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "pitr.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    lines = PitrProgram(tmp_path)("-c", path, "status", exit_code=2).stderr.splitlines()
    assert lines[0].startswith(f"error[PITR-2002]: the configuration {path} ")
    assert lines[1].startswith("  why:  ")
    assert all(line.startswith("        ") for line in lines[2:-1])
    assert lines[-1].startswith("  next: ")


def test_wrong_usage_is_2_and_json_all_the_same(tmp_path: Path) -> None:
    pitr = PitrProgram(tmp_path)
    mistyped = pitr("restroe", exit_code=2).stderr
    assert "error[PITR-2001]" in mistyped
    assert "'restore'" in mistyped
    alone = pitr(exit_code=2).stderr
    assert alone.startswith("Usage: pitr")
    assert "error[" not in alone
    answer = pitr("restore", "--json", exit_code=2).object
    assert (answer["command"], answer["error"]["exit"]) == ("restore", 2)


def test_options_may_come_from_the_environment(tmp_path: Path) -> None:
    pitr = PitrProgram(tmp_path, {"PITR_CONFIG": str(tmp_path / "named.toml")})
    assert "named.toml" in pitr("status", exit_code=2).stderr
    pitr = PitrProgram(tmp_path, {"PITR_STATUS_CHECK_RPO": "soon"})
    assert "soon" in pitr("status", exit_code=2).stderr
    regions = {"PITR_RESTORE_FROM": "ftp://one file:///two", "PITR_RESTORE_IDENTITY": "identity.toml"}
    pitr = PitrProgram(tmp_path, {**regions, "PITR_RESTORE_TO": "latest", "PITR_RESTORE_INTO": "new"})
    assert "--from ftp://one" in pitr("restore", exit_code=2).stderr
    pitr = PitrProgram(tmp_path, {"PITR_WAL_LIST_FROM": "ftp://three"})
    assert "--from ftp://three" in pitr("wal", "list", exit_code=2).stderr


def test_every_options_variable_is_its_name_in_capitals() -> None:
    assert {name for name, lazy in COMMANDS.items() if lazy.attribute != name.replace("-", "_")} == set()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["000000010000000000000001"],
        ["000000010000000000000001", "x", "--plan"],
        ["000000010000000000000001", "x", "--plan", "/nonexistent"],
        ["000000010000000000000001", "x", "--what"],
        ["a", "b", "c", "--plan", "/nonexistent"],
        ["\udcff", "x", "--plan", "/nonexistent"],
    ],
)
def test_any_doubt_of_wal_fetch_is_200_and_for_a_standby_1(tmp_path: Path, words: list[str]) -> None:
    pitr = PitrProgram(tmp_path)
    assert pitr("wal", "fetch", *words, exit_code=200).stderr
    assert pitr("-q", "wal", "fetch", *words, exit_code=200).stderr
    assert pitr("wal", "fetch", "--standby", *words, exit_code=1).stderr


def test_wal_fetch_answers_in_json_too_and_its_exit_code_stays(tmp_path: Path) -> None:
    pitr = PitrProgram(tmp_path)
    name, got = "000000010000000000000001", tmp_path / "got"
    (tmp_path / "spool").mkdir()
    for words in (["wal", "fetch", name, got, "--json"], ["--json", "wal", "fetch", name, got]):
        (tmp_path / "spool" / name).write_bytes(b"wal")
        answer = pitr(*words, "--plan", tmp_path / "plan").object
        assert (answer["command"], answer["ok"], answer["error"]) == ("wal fetch", True, None)
    assert got.read_bytes() == b"wal"
    doubt = pitr("wal", "fetch", name, got, "--plan", "/nonexistent", "--json", exit_code=200)
    assert (doubt.object["ok"], doubt.error["exit"]) == (False, 200)
    assert f"pitr wal fetch: {doubt.error['message']}\n" == doubt.stderr
    closed = (
        f"exec {shlex.join(pitr.words('wal', 'fetch', name, got, '--plan', '/nonexistent', '--json'))} >&-"
    )
    assert subprocess.run(["sh", "-c", closed], env=pitr.env(), check=False, timeout=60).returncode == 200


def test_wal_fetch_imports_nothing_that_a_spool_hit_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "000000010000000000000001").write_bytes(b"wal")
    code = (
        "import runpy, sys; name = '000000010000000000000001';"
        "sys.argv = ['pitr', 'wal', 'fetch', name, 'got', '--plan', 'plan']\n"
        "try:\n    runpy.run_module('cli.main', run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, *sorted(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    exit_code, *modules = done.stdout.split()
    assert (exit_code, (tmp_path / "got").read_bytes()) == ("0", b"wal")
    heavy = {"click", "boto3", "psycopg", "pydantic", "rich", "structlog", "numpy", "cryptography", "sqlite3"}
    assert not heavy & {module.partition(".")[0] for module in modules}
