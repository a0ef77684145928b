"""Limits and the lease as people meet them: the daemon, the command, a second host, a kill in the middle."""

from __future__ import annotations

import signal

import pytest
from fix_cli import MakeSite, Site, wait_until

SLOW = 'rate_limit = "512 KiB/s"'
LEASE_PREFIX = "leases/backup/"


def slow_site(make_site: MakeSite) -> Site:
    """A site whose base backup takes a minute, if nobody speeds it up."""
    site = make_site()
    site.server.execute(
        "CREATE TABLE wide AS SELECT repeat(md5(g::text), 10) FROM generate_series(1, 30000) g"
    )
    site.set_option('rate_limit = "none"    #', f"{SLOW}    #")
    return site


def second_host(site: Site) -> str:
    """The same configuration with another state directory, as on another host."""
    other = site.config.with_name("other.toml")
    text = site.config.read_text()
    other.write_text(text.replace(f'"{site.state_dir}"', f'"{site.folder / "other-state"}"'))
    assert other.read_text() != text
    return str(other)


def copied_bytes(site: Site) -> int:
    running = site("status", "--json").data["backup"]
    return int(running["running_bytes"]) if running["running_step"] == "copying" else 0


def test_limits_are_shown_and_changed_while_a_backup_is_taken(make_site: MakeSite) -> None:
    site = slow_site(make_site)
    site.start_daemon(backups=0)
    wait_until(lambda: copied_bytes(site) > 0, "the first backup copies")
    seen = site("status", "--json").data["backup"]
    assert (seen["rate_limit"], seen["workers"]) == (512 << 10, 2)
    assert seen["running_paused"] is None
    assert "read with 512.0 KiB/s, by 2 threads at once" in site("status").stdout

    changed = site("backup", "limit", "--rate", "128KiB/s", "--workers", "1", "--json").data
    assert changed == {"rate_limit": 128 << 10, "workers": 1}
    assert site("backup", "limit", "--json").data == changed
    for words in (("--rate", "fast"), ("--workers", "0")):
        site("backup", "limit", *words, exit_code=2)
    assert "from 1 to 2" in site("backup", "limit", "--workers", "3", exit_code=1).stderr
    site("backup", exit_code=6)

    assert "no limit, by 1 thread at once" in site("backup", "limit", "--rate", "none").stdout
    wait_until(site.backups, "the backup ends at the new rate")
    assert site("backup", "--label", "unlimited", "--json").data["backup"]["label"] == "unlimited"

    # Who stops waiting for a backup is told that it goes on.
    site("backup", "limit", "--rate", "128KiB/s")
    log = site.folder / "backup.log"
    waiting = site.program.begin("-c", site.config, "backup", "--type", "full", log=log)
    wait_until(lambda: copied_bytes(site) > 0, "another backup copies")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(30) == 130
    assert "the daemon goes on with the backup" in log.read_text()
    site("backup", "limit", "--rate", "none")
    wait_until(lambda: len(site.backups()) == 3, "it ends without whoever waited")
    assert site.daemon.stop() == 0, site.daemon.tail()


@pytest.mark.slow
def test_a_second_host_is_told_who_takes_a_backup_and_a_killed_daemon_goes_on_at_once(
    make_site: MakeSite,
) -> None:
    site = slow_site(make_site)
    other = second_host(site)
    site.start_daemon(backups=0)
    wait_until(lambda: copied_bytes(site) > 0, "the first backup copies")
    refused = site.program("-c", other, "backup", "--standalone", exit_code=6)
    assert f"process {site.daemon.pid} on " in refused.stderr
    assert "until 20" in refused.stderr

    # Killed in the middle: nothing lists what it left, and another host waits for the lease to run out.
    killed = site.daemon.pid
    site.daemon.kill()
    assert site.backups() == []
    refused = site.program("-c", other, "backup", "--standalone", exit_code=6)
    assert f"process {killed} on " in refused.stderr

    # The same state directory's next daemon knows that its predecessor is dead.
    site.set_option(f"{SLOW}    #", 'rate_limit = "none"    #')
    site.start_daemon()
    assert len(site.backups()) == 1
    assert site.daemon.stop() == 0, site.daemon.tail()
    assert any(region.objects(LEASE_PREFIX) for region in site.regions)

    # It let the lease go, and so another host may take one.
    second_host(site)
    taken = site.program("-c", other, "backup", "--standalone", "--label", "elsewhere", "--json")
    assert taken.data["backup"]["label"] == "elsewhere"
