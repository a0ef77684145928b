"""The private server of a restore: who can reach it is the restore alone, and it never outlives a failure."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pitr.errors import RestoreRefused
from pitr.postgres.installation import Installation
from pitr.postgres.instance import Instance
from pitr.postgres.primary_limits import raised_limits
from pitr.postgres.processes import postmaster_pid
from pitr.postgres.server_user import hand_over
from pitr.recover import STOP_TIMEOUT_S, private_settings
from pitr.restore_journal import WorkDirectory, remove_tree
from pitr.restore_request import RestoreRequest
from pitr.restore_staged import RestorePlace

_SOCKET_PATH_BYTES: Final = 80
_SOCKET_PREFIX: Final = "pitr-restore-"
_PORT: Final = 5432


@contextlib.contextmanager
def private_instance(
    installation: Installation, place: RestorePlace, request: RestoreRequest
) -> Iterator[Instance]:
    """Give the instance on the restored files; whatever happens but success, it does not run on.

    The server of a run that was killed is ended first.  Raises RestoreRefused if one runs there that is
    somebody else's.
    """
    work = place.work
    socket_dir = work.path / "s"
    if len(str(socket_dir)) > _SOCKET_PATH_BYTES:
        socket_dir = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX))
        hand_over(socket_dir, request.user)
    instance = Instance(
        installation,
        place.data.final,
        user=request.user,
        socket_dir=socket_dir,
        port=_PORT,
        log_path=work.log_file,
        is_cut_off=request.is_cut_off,
    )
    _end_leftover(instance, place.data.final)
    try:
        yield instance
    except BaseException:
        instance.stop("immediate", timeout_s=STOP_TIMEOUT_S)
        raise
    finally:
        if not instance.is_running and socket_dir.parent != work.path:
            remove_tree(socket_dir)


def reopened(request: RestoreRequest) -> Instance:
    """Return the private server of a restore that has ended, started again if it does not run.

    It is the caller's.  Raises RestoreRefused if one runs there that is somebody else's, ServerRefused,
    ServerUnavailable.
    """
    target, work = request.target, WorkDirectory.of(request.target)
    assert request.installation is not None, "the caller has checked it"
    folder = _socket_folder(target) if postmaster_pid(target) is not None else work.path / "s"
    if folder is None or not (folder.parent == work.path or folder.name.startswith(_SOCKET_PREFIX)):
        raise RestoreRefused(
            f"a server that is not the restore's is running on {target}",
            hint="stop it, and run the restore again",
        )
    if len(str(folder)) > _SOCKET_PATH_BYTES:
        folder = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX))
        hand_over(folder, request.user)
    instance = Instance(
        request.installation,
        target,
        user=request.user,
        socket_dir=folder,
        port=_PORT,
        log_path=work.log_file,
    )
    if not instance.is_running:
        # Limits of the primary still count: prepared transactions are kept by them.
        settings = private_settings(
            request.installation.major,
            dict(request.plan.backup.settings),
            work.path,
            target,
            request.server_settings,
        )
        settings |= raised_limits(request.installation, target, request.user, settings)
        work.hand_over(request.user)
        instance.start(settings, timeout_s=STOP_TIMEOUT_S)
    return instance


def _socket_folder(data_dir: Path) -> Path | None:
    """Return where the running server's socket is."""
    lines = (data_dir / "postmaster.pid").read_text(errors="replace").splitlines()
    # Line 5 is the socket's folder (PostgreSQL src/include/utils/pidfile.h).
    return Path(lines[4]) if len(lines) > 4 else None


def _end_leftover(instance: Instance, data_dir: Path) -> None:
    if not instance.is_running:
        return
    folder = _socket_folder(data_dir)
    # Ours is nobody else's.
    if folder is None or (folder != instance.socket_dir and not folder.name.startswith(_SOCKET_PREFIX)):
        raise RestoreRefused(
            f"a server that is not the restore's is running on {data_dir}",
            hint="stop it, and run the restore again",
        )
    instance.stop("immediate", timeout_s=STOP_TIMEOUT_S)
