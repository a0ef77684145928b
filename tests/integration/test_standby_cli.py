"""A daemon on a standby: it archives, takes full and incremental backups, and lives through a promotion."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_patroni_rest import rest_member
from fix_postgres import PostgresFactory, RunningPostgres, table_digests
from fix_standby import caught_up, make_standby

from pitr.wal.lsn import LSN

SETTINGS = {"summarize_wal": "on", "wal_keep_size": "1GB", "autovacuum": "off"}


def flushed(server: RunningPostgres) -> LSN:
    return LSN.parse(str(server.value("SELECT pg_current_wal_flush_lsn()")))


def is_copying(site: Site) -> bool:
    return site("status", "--json").data["backup"]["running_step"] == "copying"


@pytest.mark.slow
def test_a_daemon_on_a_standby_backs_up_and_takes_a_backup_again_after_a_promotion(
    make_site: MakeSite, postgres_factory: PostgresFactory
) -> None:
    made = make_site(settings=SETTINGS, init=False)
    primary = made.server
    primary.execute(
        "CREATE TABLE wide AS SELECT g AS id, sha512(g::text::bytea) AS t FROM generate_series(1, 60000) g"
    )
    standby = make_standby(postgres_factory, primary, SETTINGS)
    caught_up(primary, standby)
    site = replace(made, server=standby)
    site.init()
    findings = {one["id"]: one for one in site("doctor", "--json", exit_code=None).data["findings"]}
    assert findings["server.role"]["severity"] == "warn"
    assert "target_session_attrs=prefer-standby" in findings["server.role"]["next"]
    site.set_option(f'dsn = "{standby.dsn}"', f'dsn = "{standby.dsn} target_session_attrs=prefer-standby"')
    findings = {one["id"]: one for one in site("doctor", "--json", exit_code=None).data["findings"]}
    assert (findings["server.role"]["severity"], findings["server.role"]["next"]) == ("ok", None)
    site.start_daemon()
    primary.execute("UPDATE wide SET t = 'changed' WHERE id % 300 = 5")
    caught_up(primary, standby)
    taken = site("backup", "--type", "incr", "--json").data
    assert taken["backup"]["type"] == "incr", taken["notes"]

    # Promoted in the middle: the backup fails, says so, and is taken again by itself.
    site("backup", "limit", "--rate", "512KiB/s")
    log = site.folder / "backup.log"
    waiting = site.program.begin("-c", site.config, "backup", "--type", "full", log=log)
    wait_until(lambda: is_copying(site), "the backup copies", every_s=0.2)
    before = len(site.backups())
    standby.instance.promote()
    site("backup", "limit", "--rate", "none")
    assert waiting.wait(60) != 0
    assert "promoted" in log.read_text()
    wait_until(lambda: len(site.backups()) > before, "it is taken again", timeout_s=120)
    newest = site("backups", "show", "latest", "--json").data["backup"]
    assert newest["timeline"] in {2, "00000002"}

    standby.execute("INSERT INTO wide VALUES (0, 'after the promotion')")
    site.wait_durable(flushed(standby))
    expected = table_digests(standby.dsn)
    restored = site.restore("latest", site.folder / "restored", "--start")
    assert restored.data["plan"]["backup"] == newest["backup"]
    assert table_digests(restored.data["dsn"]) == expected
    assert site.daemon.stop() == 0, site.daemon.tail()


def test_the_leader_of_a_standby_cluster_is_archived_and_backed_up(
    make_site: MakeSite, postgres_factory: PostgresFactory
) -> None:
    made = make_site(settings=SETTINGS, init=False)
    primary = made.server
    primary.execute("CREATE TABLE wide AS SELECT generate_series(1, 5000) AS id")
    standby = make_standby(postgres_factory, primary, SETTINGS)
    caught_up(primary, standby)
    site = replace(made, server=standby)
    site.init()
    with rest_member() as member:
        member.lead("dr1", standby.host, standby.port, is_standby=True)
        site.set_option(f'dsn = "{standby.dsn}"', f'dsn = "{primary.dsn}"\npatroni = ["{member.url}"]')
        findings = {one["id"]: one for one in site("doctor", "--json", exit_code=None).data["findings"]}
        assert findings["server.role"]["severity"] == "ok", findings["server.role"]
        assert findings["server.role"]["next"] is None
        site.start_daemon()
        primary.execute("INSERT INTO wide VALUES (0)")
        caught_up(primary, standby)
        assert site("backup", "--type", "incr", "--json").data["backup"]["type"] == "incr"
        primary.execute("INSERT INTO wide VALUES (-1)")
        site.wait_durable(flushed(primary))
        assert not primary.execute("SELECT 1 FROM pg_stat_replication WHERE application_name = 'pitr'")
        expected = table_digests(primary.dsn)
        restored = site.restore("latest", site.folder / "restored", "--start")
        assert table_digests(restored.data["dsn"]) == expected
        assert site.daemon.stop() == 0, site.daemon.tail()
