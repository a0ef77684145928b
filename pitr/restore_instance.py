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
_SOCKET_FOLDER: Final = "s"
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
    socket_dir = _make_socket_folder(work, request)
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
        if not instance.is_running:
            remove_socket_folder(work.path)


def _make_socket_folder(work: WorkDirectory, request: RestoreRequest) -> Path:
    """Return the folder of the socket: elsewhere if a path in ``work`` is longer than a socket's may be.

    Then ``work`` has a link to it, by which whoever ends the server, or finds it killed, removes it.
    """
    folder = work.path / _SOCKET_FOLDER
    if len(str(folder)) <= _SOCKET_PATH_BYTES:
        return folder
    remove_socket_folder(work.path)
    made = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX))
    hand_over(made, request.user)
    folder.symlink_to(made)
    return made


def remove_socket_folder(work: Path) -> None:
    """Remove the folder elsewhere that ``work`` has a link to, if it is one of ours.  May be repeated."""
    link = work / _SOCKET_FOLDER
    if not link.is_symlink():
        return
    # The server's user owns the link: it must not lead to anything else.
    made = link.readlink()
    is_ours = made.parent == Path(tempfile.gettempdir()) and made.name.startswith(_SOCKET_PREFIX)
    if is_ours and made.is_dir() and not made.is_symlink():
        remove_tree(made)
    link.unlink(missing_ok=True)


def reopened(request: RestoreRequest) -> Instance:
    """Return the private server of a restore that has ended, started again if it does not run.

    It is the caller's.  Raises RestoreRefused if one runs there that is somebody else's, ServerRefused,
    ServerUnavailable.
    """
    target, work = request.target, WorkDirectory.of(request.target)
    assert request.installation is not None, "the caller has checked it"
    folder = _socket_folder(target) if postmaster_pid(target) is not None else work.path / _SOCKET_FOLDER
    if folder is None or not (folder.parent == work.path or folder.name.startswith(_SOCKET_PREFIX)):
        raise RestoreRefused(
            f"a server that is not the restore's is running on {target}",
            hint="stop it, and run the restore again",
        )
    if folder.parent == work.path:
        folder = _make_socket_folder(work, request)
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
