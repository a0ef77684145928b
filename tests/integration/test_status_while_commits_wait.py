"""While commits wait, the server hears from us often, for some of its own steps wait for that."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_sync import LIMIT_S, commit_that_waits, set_names, until
from fix_wal_archive import WalHouse, archiving, quick_settings, system_identifier

from pitr.archive_values import Acknowledgement
from storage.memory import MemoryStore

# What is sent within this time of a test was not sent because it was time.
NEVER_S = 4000.0
REPLY = "SELECT reply_time, write_lsn, flush_lsn FROM pg_stat_replication WHERE application_name = 'pitr'"


def waiting(server: RunningPostgres) -> int:
    count = server.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("major", [17, 18])
def test_a_commit_is_released_that_was_flushed_before_its_standby_was_a_synchronous_one(
    postgres_factory: PostgresFactory, tmp_path: Path, major: int
) -> None:
    """What the flush position would have released then, the next message does, though nothing is new in it.

    A message that finds a walsender which has missed its wake-up lets it send, and comes as well.
    """
    server = postgres_factory(major, {"wal_keep_size": "1GB"})
    settings = quick_settings(status_interval_s=NEVER_S, silence_s_max=4 * NEVER_S)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool", settings=settings) as running:
        running.wait_streaming()
        running.archiver.acknowledge(Acknowledgement(is_synchronous=True))
        set_names(server, "somebody")
        with commit_that_waits(server) as client:
            until(lambda: waiting(server) == 1)
            running.wait_durable(str(server.value("SELECT pg_current_wal_flush_lsn()")))
            seen = set(server.execute(REPLY))

            def is_heard_anew() -> bool:
                """Four messages of one position: a server that hears nothing asks once in this time."""
                seen.update(server.execute(REPLY))
                positions = Counter((written, flushed) for _, written, flushed in seen)
                return max(positions.values()) >= 4

            until(is_heard_anew)
            assert waiting(server) == 1
            set_names(server, "pitr")
            client.join(LIMIT_S)
            assert not client.is_alive()
        set_names(server, "")
