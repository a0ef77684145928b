"""One recovery of a restored data directory, from the server's start until replay pauses at its target.

The same private settings, the same way of looking and the same sum of CPU for every ``restore_command``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster import BenchCluster
from benchmarks.harness import RUN_TIMEOUT_S, RunFailed, Usage, cpu_of
from pitr.postgres.instance import Instance
from pitr.postgres.processes import postmaster_pid
from pitr.postgres.replay import ReplayMonitor
from pitr.postgres.server_user import hand_over
from pitr.recover import private_settings
from pitr.recovery import RecoverySetting
from pitr.restore_directory import AUTO_CONF

# As the restore looks at its own server.
_LOOK_S = 0.1
_STOP_TIMEOUT_S = 60.0


def recover_copy(cluster: BenchCluster, files: Path, folder: Path, command: str) -> Usage:
    """Recover a copy of the restored ``files`` below ``folder`` with another ``restore_command``.

    ``{data}`` in the command becomes the copy's path.  Raises RunFailed.
    """
    with _emptied(folder):
        data = folder / "data"
        shutil.copytree(files, data, symlinks=True, copy_function=shutil.copy2)
        set_restore_command(data, command.replace("{data}", str(data)))
        hand_over(data, cluster.user)
        log = folder / "log"
        log.touch()
        hand_over(log, cluster.user)
        hand_over(folder, cluster.user)
        os.sync()
        instance = Instance(
            cluster.installation, data, user=cluster.user, socket_dir=folder / "s", port=5432, log_path=log
        )
        begun = time.monotonic()
        instance.start(private_settings(cluster.installation.major, {}, folder, data, {}), wait=False)
        try:
            _wait_for_pause(instance)
            wall_s = time.monotonic() - begun
            return Usage(wall_s, tree_cpu_s(instance.pid), 0)
        finally:
            instance.stop("immediate")


def set_restore_command(data: Path, command: str) -> None:
    """Replace the setting that the restore wrote; the target stays."""
    auto_conf = data / AUTO_CONF
    line = f"{RecoverySetting('restore_command', command)}"
    text, found = re.subn(r"(?m)^restore_command = .*$", lambda _: line, auto_conf.read_text())
    if found != 1:
        raise RunFailed(f"{auto_conf} has {found} lines of restore_command")
    auto_conf.write_text(text)


def tree_cpu_s(pid: int | None) -> float:
    """Return the CPU seconds of a server: its processes, and all that ran for ``restore_command``."""
    if pid is None:
        raise RunFailed("the server has ended")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_of(pid) + sum(cpu_of(int(child)) for child in children)


def stop_server(data: Path) -> float:
    """End the paused server of a restore; return the CPU seconds that it had taken."""
    pid = postmaster_pid(data)
    spent_s = tree_cpu_s(pid)
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise RunFailed(f"the server {pid} does not end")
        time.sleep(_LOOK_S)
    return spent_s


def _wait_for_pause(instance: Instance) -> None:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    with ReplayMonitor(instance.dsn, major=instance.installation.major) as monitor:
        while instance.is_running and time.monotonic() < deadline:
            state = monitor.look()
            if state is not None and state.is_paused:
                return
            time.sleep(_LOOK_S)
    raise RunFailed(f"recovery did not arrive: {instance.last_log_lines()}")


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
