"""Commits that wait for a standby, the least role that may release them, and a receiver to stop."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from fix_postgres import RunningPostgres

from pitr.postgres.sync_standby import GRANTS

LIMIT_S = 30.0


def until(condition: Callable[[], bool], what: str = "it does not come about") -> None:
    """Wait until something holds, as it must soon."""
    for _ in range(int(LIMIT_S / 0.05)):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError(what)


def guard_dsn(server: RunningPostgres) -> str:
    """Make the role of a watchdog, with no more rights than it needs; return its connection string."""
    server.execute("CREATE ROLE guard LOGIN")
    server.execute("GRANT pg_read_all_settings TO guard")
    for grant in GRANTS:
        server.execute(grant.format(role="guard"))
    return server.dsn.replace("user=postgres", "user=guard")


def set_names(server: RunningPostgres, names: str) -> None:
    """Let commits wait for ``names``, as an administrator would."""
    server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    server.execute("SELECT pg_reload_conf()")
    until(lambda: sync_names(server) == names)


def sync_names(server: RunningPostgres) -> str:
    return str(server.value("SHOW synchronous_standby_names"))


@contextmanager
def commit_that_waits(server: RunningPostgres) -> Iterator[threading.Thread]:
    """Yield the thread of a client that commits; if it still waits at the end, it is let go."""

    def commit() -> None:
        with psycopg.connect(server.dsn, autocommit=True) as session:
            session.execute("SELECT pg_logical_emit_message(true, 'x', 'y')")

    client = threading.Thread(target=commit)
    client.start()
    try:
        yield client
    finally:
        server.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        client.join(LIMIT_S)


@contextmanager
def receiver(server: RunningPostgres, name: str = "pitr") -> Iterator[subprocess.Popen[bytes]]:
    """Run PostgreSQL's own synchronous receiver, which flushes at once; yield its process."""
    folder = server.data_dir.parent / f"received-{name}"
    folder.mkdir(exist_ok=True)
    tool = server.instance.installation.tool("pg_receivewal")
    dsn = f"{server.dsn} application_name={name}"
    process = subprocess.Popen([tool, "-D", folder, "-d", dsn, "--synchronous", "-n"])
    try:
        until(
            lambda: (
                server.value(
                    "SELECT count(flush_lsn) FROM pg_stat_replication WHERE application_name = %s", name
                )
                == 1
            )
        )
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(LIMIT_S)
