"""The daemon's end of the control socket: one thread that accepts, a bounded number that answer."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cli.control import (
    REQUEST_BYTES_MAX,
    ControlRequest,
    encode_failure,
    encode_line,
    read_line,
)
from cli.errors import describe
from pitr.errors import AlreadyRunning, ServerRefused

CONNECTIONS_MAX = 8
IDLE_S = 10.0
ACCEPT_AGAIN_S = 1.0


class ControlHandler(Protocol):
    """Carries out a request.  Called in a thread of its own; may raise any error that the CLI knows."""

    def __call__(
        self, request: ControlRequest, progress: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]: ...


class ControlServer:
    """Listens on a Unix socket of mode 0600 and refuses peers of another user, but for root.

    The caller holds the state directory's lock, so a socket that is already there is a dead one.
    """

    def __init__(self, path: Path, handler: ControlHandler) -> None:
        self._path = path
        self._handler = handler
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        """Bind and begin to answer.  Raises ServerRefused if the path is too long for a socket."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        old_mask = os.umask(0o177)
        try:
            self._listener.bind(str(self._path))
        except OSError as error:
            raise ServerRefused(
                f"cannot listen at {self._path}",
                detail=str(error),
                hint="choose a shorter [daemon] state_dir: a socket's path has at most 107 bytes",
            ) from error
        finally:
            os.umask(old_mask)
        self._listener.listen(CONNECTIONS_MAX)
        self._listener.settimeout(0.5)
        self._thread.start()

    def stop(self) -> None:
        """Stop to accept.  Runs that are being answered end by themselves."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                # As a rule no descriptor is left; whoever asks waits until there is one again.
                self._stopping.wait(ACCEPT_AGAIN_S)
                continue
            if not self._slots.acquire(blocking=False):
                with connection, contextlib.suppress(OSError):
                    busy = AlreadyRunning(
                        "the daemon is busy", detail=f"{CONNECTIONS_MAX} requests are being answered"
                    )
                    connection.sendall(encode_failure(describe(busy)))
                continue
            answering = threading.Thread(
                target=self._answer, args=(connection,), name="control-answer", daemon=True
            )
            try:
                answering.start()
            except RuntimeError:  # no thread is left, either
                connection.close()
                self._slots.release()

    def _answer(self, connection: socket.socket) -> None:
        def progress(message: Mapping[str, Any]) -> None:
            # Whoever asked may have gone; the work goes on without an audience.
            with contextlib.suppress(OSError):
                connection.sendall(encode_line({"progress": message}))

        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(IDLE_S)
                _check_peer(connection)
                try:
                    line = read_line(connection, bytearray(), REQUEST_BYTES_MAX)
                    if line is None:
                        return
                    reply = encode_line({"result": self._handler(ControlRequest.decode(line), progress)})
                except Exception as error:  # noqa: BLE001 — the top of a thread: the peer is told
                    reply = encode_failure(describe(error))
                connection.sendall(reply)
        finally:
            self._slots.release()


def _check_peer(connection: socket.socket) -> None:
    """Raise PermissionError unless the peer is our user or root: the mode alone depends on the directory."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in {os.geteuid(), 0}:
        raise PermissionError(f"user {uid} may not control this daemon")
