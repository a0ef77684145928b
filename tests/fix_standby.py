"""Standbys of the tests' servers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from fix_postgres import PostgresFactory, RunningPostgres

from pitr.postgres.server_user import hand_over


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
