"""Instances: start, watch and stop one PostgreSQL server on a data directory.  Speaks no SQL.

For restores, verifications and the demo.  The production server that is backed up is never started
or stopped by us.  Linux only: processes are looked up in ``/proc``.

The postmaster is started directly and not by ``pg_ctl start``: settings such as ``restore_command``
would pass two shells, and only a parent learns at once that recovery ended the server.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.cut_off import as_cut_off_user
from pitr.postgres.installation import Installation
from pitr.postgres.processes import descendants, is_alive, postmaster_pid
from pitr.postgres.server_user import ServerUser as ServerUser
from pitr.postgres.server_user import as_user, hand_over
from pitr.postgres.server_user import readable_installation as readable_installation
from pitr.postgres.server_user import server_user as server_user
from pitr.postgres.shared_memory import remove_segment

INITDB_TIMEOUT_S = 180.0
KILL_TIMEOUT_S = 20.0
_POLL_S = 0.05
# Linux gives 108 bytes to a socket's path; PostgreSQL adds ".lock" to it for another file.
_SOCKET_PATH_BYTES_MAX = 100
_LOG_TAIL_BYTES = 16 * 1024
# Statements may be in the log, and with them secrets; what ended the server never is.
_FATAL_LINE = re.compile(r".*\b(?:FATAL|PANIC|HINT|DETAIL):.*|(?:postgres|initdb|pg_ctl): .*")
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Instance:
    """One server on one data directory.  Not thread-safe: its owner starts and stops it.

    It listens on a Unix socket in ``socket_dir`` and, unless the settings say otherwise, nowhere
    else.  Dropping the object does not stop the server: it outlives its starter's terminal.
    ``environment`` None passes on the caller's, which ``restore_command`` may need.  ``is_cut_off``: it runs
    without a network (``pitr.postgres.cut_off``).
    """

    def __init__(
        self,
        installation: Installation,
        data_dir: Path,
        *,
        user: ServerUser | None,
        socket_dir: Path,
        port: int,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        is_cut_off: bool = False,
    ) -> None:
        self.installation = installation
        self.data_dir = data_dir.absolute()
        self.user = user
        self.socket_dir = socket_dir.absolute()
        self.port = port
        self.log_path = log_path
        self._environment = environment
        self._is_cut_off = is_cut_off
        self._settings: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        socket_path = f"{self.socket_dir}/.s.PGSQL.{port}.lock"
        if len(os.fsencode(socket_path)) > _SOCKET_PATH_BYTES_MAX:
            raise ServerRefused(
                f"the socket's path is longer than {_SOCKET_PATH_BYTES_MAX} bytes",
                detail=socket_path,
                hint="choose a shorter folder for the socket",
            )

    @property
    def dsn(self) -> str:
        """The conninfo of the superuser that ``init`` makes, over the Unix socket."""
        return self.dsn_as("postgres")

    def dsn_as(self, role: str) -> str:
        """Return the conninfo of a role over the Unix socket."""
        user = role if re.fullmatch(r"[A-Za-z0-9_.-]+", role) else _quoted(role)
        return f"host={_quoted(str(self.socket_dir))} port={self.port} user={user} dbname=postgres"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when no server runs on the data directory."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return postmaster_pid(self.data_dir)

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    @property
    def is_ready(self) -> bool:
        """Whether the server takes connections, or, without hot standby, has begun recovery.

        The status that ``pg_ctl -w`` waits for: line 8 of postmaster.pid
        (PostgreSQL src/include/utils/pidfile.h).
        """
        pid = self.pid
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return (
            pid is not None
            and len(lines) >= 8
            and lines[0] == str(pid)
            and lines[7].strip() in {"ready", "standby"}
        )

    def init(self, extra: Sequence[str] = ()) -> None:
        """Make a new cluster with data checksums, superuser ``postgres``, trusting every local user.

        For throw-away clusters.  Raises ServerRefused if the directory is not empty or initdb fails.
        """
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        hand_over(self.data_dir, self.user)
        command = [str(self.installation.tool("initdb")), "-D", str(self.data_dir), "-k", "-U", "postgres"]
        command += ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions", *extra]
        self._run(command, INITDB_TIMEOUT_S)

    def start(self, settings: Mapping[str, str], *, timeout_s: float = 60.0, wait: bool = True) -> None:
        """Start the server with ``settings`` on its command line, where they win over every file.

        Raises ServerRefused if one runs already or it ends before it is ready, ServerUnavailable
        if it is not ready in time (it goes on starting).
        """
        if self.is_running:
            raise ServerRefused(f"a server is already running on {self.data_dir}")
        if not self.socket_dir.is_dir():
            self.socket_dir.mkdir(mode=0o700, parents=True)
            hand_over(self.socket_dir, self.user)
        self._settings = dict(settings)
        command = [str(self.installation.tool("postgres")), "-D", str(self.data_dir), "-p", str(self.port)]
        for name, value in {
            "unix_socket_directories": _in_list(str(self.socket_dir)),
            "listen_addresses": "",
            **settings,
        }.items():
            command += ["-c", f"{name}={value}"]
        prefix, options = as_cut_off_user(self.user) if self._is_cut_off else as_user(self.user)
        with self.log_path.open("ab") as log:
            # A session of its own: neither ^C in the terminal nor its end reaches the postmaster.
            self._process = subprocess.Popen(
                [*prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
                cwd="/",
                **options,
            )
        if wait:
            self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float) -> None:
        """Return once the server is ready.

        Raises ServerRefused if it ended, ServerUnavailable after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready:
            if not self.is_running:
                raise ServerRefused(
                    f"the server on {self.data_dir} ended before it was ready",
                    detail=self.last_log_lines(),
                    hint=f"the whole log is {self.log_path}",
                )
            if time.monotonic() >= deadline:
                raise ServerUnavailable(
                    f"the server on {self.data_dir} was not ready after {timeout_s:g} s",
                    detail=self.last_log_lines(),
                    hint=f"the whole log is {self.log_path}",
                )
            time.sleep(_POLL_S)

    def wait_stopped(self, timeout_s: float) -> None:
        """Return once no server runs.  Raises ServerUnavailable after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.is_running:
            if time.monotonic() >= deadline:
                raise ServerUnavailable(f"the server on {self.data_dir} still runs after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def stop(self, mode: str = "fast", *, timeout_s: float = 60.0) -> None:
        """Stop the server by PostgreSQL's ``smart``, ``fast`` or ``immediate`` shutdown.  May be repeated.

        Raises ServerUnavailable if it still runs after ``timeout_s``.
        """
        pid = self.pid
        if pid is not None:
            _send(pid, _STOP_SIGNALS[mode])
            self.wait_stopped(timeout_s)

    def restart(self, mode: str = "fast", *, timeout_s: float = 60.0) -> None:
        """Stop the server and start it with the settings of its last start."""
        self.stop(mode, timeout_s=timeout_s)
        self.start(self._settings, timeout_s=timeout_s)

    def kill(self) -> None:
        """End the postmaster and all its children at once, by SIGKILL, as a power cut does.

        May be repeated.  Raises ServerUnavailable if a process is still there after ``KILL_TIMEOUT_S``.
        """
        pid = self.pid
        if pid is None:
            return
        # Stopped first, so that no child is born while we count.  A signal to the group would miss them:
        # each has its own session (PostgreSQL src/backend/utils/init/miscinit.c InitPostmasterChild).
        _send(pid, signal.SIGSTOP)
        doomed = [pid, *descendants(pid)]
        for process in doomed:
            _send(process, signal.SIGKILL)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while self.is_running or any(is_alive(process) for process in doomed):
            if time.monotonic() >= deadline:
                raise ServerUnavailable(
                    f"killed processes of {self.data_dir} did not end in {KILL_TIMEOUT_S:g} s"
                )
            time.sleep(_POLL_S)
        # A power cut leaves no shared memory either.
        remove_segment(self.data_dir)

    def promote(self, *, timeout_s: float = 60.0) -> None:
        """End recovery and return once the server takes writes.  Raises ServerRefused if it cannot."""
        command = [str(self.installation.tool("pg_ctl")), "promote", "-D", str(self.data_dir)]
        self._run([*command, "-w", "-t", str(max(1, round(timeout_s)))], timeout_s + 10.0)

    def last_log_lines(self, count: int = 8) -> str:
        """Return the last lines of the log that say why the server ended."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in lines if _FATAL_LINE.fullmatch(line)][-count:])

    def _run(self, command: Sequence[str], timeout_s: float) -> None:
        """Run one of the installation's programs as the server's user, its output to the log."""
        prefix, options = as_user(self.user)
        with self.log_path.open("ab") as log:
            try:
                done = subprocess.run(
                    [*prefix, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=self._environment,
                    timeout=timeout_s,
                    check=False,
                    cwd="/",
                    **options,
                )
            except subprocess.TimeoutExpired as cause:
                raise ServerUnavailable(
                    f"{Path(command[0]).name} did not end in {timeout_s:g} s", detail=shlex.join(command)
                ) from cause
        if done.returncode != 0:
            raise ServerRefused(
                f"{Path(command[0]).name} failed with exit code {done.returncode}",
                detail=self.last_log_lines(),
                hint=f"the whole log is {self.log_path}; every folder above the data directory"
                " must be open to the server's user",
            )


def _quoted(text: str) -> str:
    """Quote a value of a conninfo."""
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"


def _in_list(path: str) -> str:
    """Quote a path for a setting that is a list of names."""
    return '"' + path.replace('"', '""') + '"'


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself, which is what was wanted
    except PermissionError as cause:
        raise ServerRefused(f"the server's process {pid} belongs to another user") from cause
