"""A backup that a killed daemon left is gone on with by the next one, and people are told."""

from __future__ import annotations

import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_postgres import table_digests

NOISE = """
    CREATE TABLE noise AS SELECT g AS n, (SELECT string_agg(sha512((g * 10 + i)::text::bytea), '')
    FROM generate_series(1, 8) i) AS bytes FROM generate_series(1, 150000) g
"""


def journaled_packs(site: Site) -> int:
    """Return how many packs of an interrupted backup, or of one that runs, are noted as stored."""
    journals = (site.state_dir / "backups").glob("*.resume-*")
    return sum(path.read_bytes().count(b"/pack-") for path in journals)


def is_resuming(site: Site) -> bool:
    step = site("status", "--json").data["backup"]["running_step"]
    return step is not None and step.startswith("resuming ")


@pytest.mark.slow
def test_a_killed_daemons_backup_is_gone_on_with_and_everybody_is_told(make_site: MakeSite) -> None:
    site = make_site(settings={"max_wal_size": "4GB"})
    server = site.server
    server.execute(NOISE)
    server.execute("VACUUM (FREEZE, ANALYZE)")
    site.set_option('rate_limit = "none"    #', 'rate_limit = "16 MiB/s"    #')
    site.start_daemon(backups=0)
    wait_until(lambda: journaled_packs(site) > 0, "a pack of the first backup is stored")
    site.daemon.kill()
    (journal,) = (site.state_dir / "backups").glob("*.resume-*")
    backup = journal.name.partition(".")[0]
    assert site.backups() == []

    # The timetable's: status says it while it runs, and the log when it has ended.
    site.start_daemon(backups=0)
    wait_until(lambda: is_resuming(site), "the next daemon goes on with it", every_s=0.2)
    assert f"one is being taken: resuming {backup}: " in site("status").stdout
    site("backup", "limit", "--rate", "none")
    wait_until(site.backups, "it is complete")
    wait_until(lambda: f"resumed {backup}" in site.daemon.tail(), "the log says what was not sent again")
    assert f"resuming {backup}: " in site.daemon.tail()
    shown = site("backups", "show", backup, "--json").data["backup"]
    assert shown["resumed_bytes"] > 8 << 20
    assert not list((site.state_dir / "backups").glob("*.resume-*"))

    # Asked for: the command says it.
    site("backup", "limit", "--rate", "16MiB/s")
    log = site.folder / "backup.log"
    waiting = site.program.begin("-c", site.config, "backup", "--type", "full", log=log)
    wait_until(lambda: journaled_packs(site) > 0, "a pack of another one is stored")
    site.daemon.kill()
    assert waiting.wait(60) != 0
    site.set_option('rate_limit = "16 MiB/s"    #', 'rate_limit = "none"    #')
    site.start_daemon()
    done = site("backup", "--type", "full")
    assert "resuming 20" in done.stderr
    assert "were not sent again" in done.stderr

    site.wait_durable()
    expected = table_digests(server.dsn)
    restored = site.restore("latest", site.folder / "restored", "--start")
    assert table_digests(restored.data["dsn"]) == expected
    assert site.daemon.stop() == 0, site.daemon.tail()
