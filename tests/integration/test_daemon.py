"""The daemon on bad days that are its own: late parts, broken state files, lost rights, a stop in between."""

from __future__ import annotations

from fix_cli import MakeSite, wait_until

from pitr.wal.lsn import LSN


def test_it_waits_for_a_server_and_regions_that_are_late(make_site: MakeSite) -> None:
    site = make_site()
    site.server.stop()
    for region in site.regions:
        region.take_away()
    site.daemon.start()
    wait_until(lambda: "waiting to begin" in site.daemon.tail(), "it waits for the server")
    site.server.start()
    wait_until(lambda: site.daemon.tail().count("regions") > 0, "it waits for the regions")
    for region in site.regions:
        region.give_back()
    site.wait_durable()
    assert site.daemon.stop() == 0


def test_a_stop_while_it_waits_to_begin_is_clean(make_site: MakeSite) -> None:
    site = make_site()
    site.server.stop()
    site.daemon.start()
    wait_until(lambda: "waiting to begin" in site.daemon.tail(), "it waits for the server")
    assert site("status", "--json").data["state"] == "waiting for the server"
    assert site.daemon.stop() == 0
    assert "no WAL had been received" in site.daemon.tail()


def test_a_daemon_that_begins_while_all_regions_are_away_tells_its_status(make_site: MakeSite) -> None:
    site = make_site()
    for region in site.regions:
        region.take_away()
    site.daemon.start()
    wait_until(lambda: "waiting to begin" in site.daemon.tail(), "it waits for the regions")
    seen = site("status", "--json").data
    assert (seen["state"], seen["is_streaming"], seen["rpo_s"]) == ("waiting for regions", False, None)
    assert "eu" in seen["last_error"], "it says which regions, and why"
    failing = [one["name"] for one in seen["regions"] if not one["is_healthy"]]
    assert len(failing) > len(site.regions) - site.quorum, "so many that the archive cannot be looked for"
    told = site("status")
    assert "NOT streaming, waiting for regions" in told.stdout
    assert seen["last_error"] in told.stderr
    probe = site("status", "--check-rpo", "60s", exit_code=5)
    assert "the RPO is not known" in probe.stderr
    for verb in ("backup", "repair"):
        assert "the daemon is not ready yet: waiting for regions" in site(verb, exit_code=10).stderr
    for region in site.regions:
        region.give_back()
    site.wait_durable()
    assert site("status", "--json").data["state"] == "running"
    assert site("status", "--check-rpo", "60s").exit_code == 0
    assert site.daemon.stop() == 0


def test_broken_state_files_are_made_anew_and_stop_nothing(make_site: MakeSite) -> None:
    site = make_site()
    site.start_daemon()
    assert site.daemon.stop() == 0
    for name in ("catalogue.sqlite", "repair.sqlite"):
        (site.state_dir / name).write_bytes(b"this is no database, but long enough to look like one" * 100)
    site.daemon.start()
    site.server.execute("CREATE TABLE t (i int)")
    site.wait_durable()
    log = site.daemon.tail()
    assert "catalogue" in log
    assert "the repair queue is replaced" in log
    wait_until(lambda: site("status", "--json").data["is_catalogue_complete"], "the catalogue is complete")
    wait_until(lambda: site("catalogue", "check", exit_code=None).exit_code == 0, "the catalogue is right")
    assert site.daemon.stop() == 0


def test_a_stop_while_the_quorum_is_away_says_what_is_not_durable_and_loses_nothing(
    make_site: MakeSite,
) -> None:
    site = make_site()
    site.set_option('drain = "25s"', 'drain = "3s"')
    site.start_daemon()
    site.server.execute("CREATE TABLE t (i int)")
    durable = site.wait_durable()
    for region in site.regions[:2]:
        region.take_away()
    site.server.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    written = site.insert_lsn()
    received = LSN.parse("0/1")

    def has_received() -> bool:
        nonlocal received
        seen = site("status", "--json").data
        received = LSN.parse(seen["received_lsn"])
        return received >= written

    wait_until(has_received, "the daemon has received what was written")
    assert site.daemon.stop() == 0
    assert "the slot keeps what lies between" in site.daemon.tail()
    assert site.restart_lsn() <= durable
    for region in site.regions[:2]:
        region.give_back()
    site.start_daemon()
    site.wait_durable(written)
    assert site.daemon.stop() == 0


def test_a_superseded_daemon_ends_and_says_so(make_site: MakeSite) -> None:
    site = make_site()
    words = ["init", "--pg", site.server.dsn, "--identity", site.identity, "--non-interactive"]
    words += ["--dir", site.folder / "second", "--metrics", "off", "--quorum", 2]
    for region in site.regions:
        words += ["--region", f"{region.name}={region.url}"]
    site.program(*words)
    done = site("daemon", exit_code=8)
    assert "another host writes this cluster's archive now" in done.stderr
    assert "error[PITR-8001]" in done.stderr


def test_one_that_was_killed_goes_on_where_it_was(make_site: MakeSite) -> None:
    site = make_site()
    site.start_daemon()
    site.server.execute("CREATE TABLE t (i int)")
    site.daemon.kill()
    site.server.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    site.daemon.start()
    site.wait_durable()
    assert len(site.backups()) == 1, "a backup that is a minute old is not taken again"
    wait_until(lambda: site("catalogue", "check", exit_code=None).exit_code == 0, "the catalogue is right")
    assert site.daemon.stop() == 0
