"""A network that can be cut: a TCP proxy on loopback before one service, ours and in this process."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from enum import StrEnum
from types import TracebackType

from fix_ports import HOST, free_port

_CHUNK_BYTES = 65_536
_POLL_S = 0.02
_CONNECT_S = 5.0
_START_TRIES_MAX = 5


class CutKind(StrEnum):
    """How a network fails: connections break, bytes wait and arrive later, or they are gone unseen."""

    BREAK = "break"
    STALL = "stall"
    SWALLOW = "swallow"


class CutNetwork:
    """Stands before ``port``; ``cut`` and ``mend`` may be called by any thread, each any number of times.

    BREAK resets what is open and refuses what is new.  STALL lets nothing through, in either direction,
    and loses nothing.  SWALLOW reads what is sent and drops it, until at last the connection breaks: each
    side has sent what the other never saw.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._ending = threading.Event()
        self._kind: CutKind | None = None
        # Of each connection that is open: both ends.
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener, self.port = _listening()
        self._accepting = threading.Thread(target=self._accept, name="cut-accept", daemon=True)

    def __enter__(self) -> CutNetwork:
        self._accepting.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._ending.set()
        self._accepting.join(10)
        self._break_all()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a connection through the proxy hangs"
        self._listener.close()

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._pairs)

    def cut(self, kind: CutKind) -> None:
        with self._lock:
            self._kind = kind
        if kind is CutKind.BREAK:
            self._break_all()

    def mend(self) -> None:
        """Let everything through again; a connection of which bytes are gone is reset first."""
        if self._kind is CutKind.SWALLOW:
            self._break_all()
        with self._lock:
            self._kind = None

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self._kind is CutKind.BREAK:
                _reset(near)
                continue
            self._threads = [one for one in self._threads if one.is_alive()]
            thread = threading.Thread(target=self._carry, args=(near,), name="cut-carry", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, near: socket.socket) -> None:
        """Carry one connection until either side ends it."""
        try:
            far = socket.create_connection((HOST, self._target), _CONNECT_S)
        except OSError:
            _reset(near)
            return
        pair = (near, far)
        with self._lock:
            self._pairs.add(pair)
        try:
            for end in pair:
                end.settimeout(_CONNECT_S)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pump(near, far)
        except OSError:
            # As with any network: whoever is left hears of it.
            pass
        finally:
            with self._lock:
                self._pairs.discard(pair)
            _reset(near)
            _reset(far)

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with selectors.DefaultSelector() as selector:
            for end in other:
                selector.register(end, selectors.EVENT_READ)
            while not self._ending.is_set():
                if self._kind is CutKind.STALL:
                    self._ending.wait(_POLL_S)
                    continue
                for key, _ in selector.select(_POLL_S):
                    end = key.fileobj
                    assert isinstance(end, socket.socket)
                    content = end.recv(_CHUNK_BYTES)
                    if not content:
                        return
                    # Cut between the two: what was read before the cut may still arrive, as on a network.
                    if self._kind is not CutKind.SWALLOW:
                        other[end].sendall(content)

    def _break_all(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def _listening() -> tuple[socket.socket, int]:
    for attempt in range(1, _START_TRIES_MAX + 1):
        port = free_port()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(_POLL_S)
        try:
            listener.bind((HOST, port))
        except OSError:
            listener.close()
            if attempt == _START_TRIES_MAX:
                raise
            continue
        listener.listen(64)
        return listener, port
    raise AssertionError("the last try raises")


def _reset(end: socket.socket) -> None:
    """Close a connection so that the other side learns of it, and nothing of it lingers."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end.close()
