"""Standbys of the tests' servers."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Mapping

from fix_postgres import PostgresFactory, RunningPostgres

from pitr.postgres.server_user import hand_over
from pitr.wal.lsn import LSN


def make_standby(
    postgres_factory: PostgresFactory, primary: RunningPostgres, settings: Mapping[str, str]
) -> RunningPostgres:
    """Return a streaming standby of ``primary``, in the place of a cluster that was made for it."""
    instance = primary.instance
    standby = postgres_factory(instance.installation.major, name="standby")
    standby.stop()
    shutil.rmtree(standby.data_dir)
    tool = instance.installation.tool("pg_basebackup")
    subprocess.run(
        [tool, "-d", primary.dsn, "-D", standby.data_dir, "-R", "-c", "fast"], check=True, timeout=120
    )
    hand_over(standby.data_dir, instance.user)
    standby.start(settings)
    return standby


def caught_up(primary: RunningPostgres, standby: RunningPostgres) -> None:
    """Let the standby replay all, up to a checkpoint at which a backup there can start."""
    primary.execute("CHECKPOINT")
    end = LSN.parse(str(primary.value("SELECT pg_current_wal_flush_lsn()")))
    for _ in range(600):
        if LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()"))) >= end:
            return
        threading.Event().wait(0.1)
    raise AssertionError("the standby does not catch up")
