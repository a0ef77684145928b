"""A store that is far away: a TCP proxy on loopback that hands answers on only after a while.

What is asked goes on at once, so a request on an open connection takes the delay longer, as by a way there
and back; many requests are delayed side by side, and nothing is limited or lost.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Queue

_READ_BYTES = 1 << 16


@contextmanager
def far_away(port: int, delay_s: float) -> Iterator[int]:
    """Yield the port of a proxy before ``port`` of this host."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        accepting = threading.Thread(target=_accept, args=(server, port, delay_s), daemon=True)
        accepting.start()
        yield int(server.getsockname()[1])
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, port: int, delay_s: float) -> None:
    with suppress(OSError):
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting: Queue[tuple[float, bytes]] = Queue()
            for work in (
                lambda near=near, far=far: _hand_on(near, far),
                lambda far=far, waiting=waiting: _hold(far, waiting, delay_s),
                lambda near=near, waiting=waiting: _let_go(near, waiting),
            ):
                threading.Thread(target=work, daemon=True).start()


def _hand_on(near: socket.socket, far: socket.socket) -> None:
    with suppress(OSError):
        while content := near.recv(_READ_BYTES):
            far.sendall(content)
        far.shutdown(socket.SHUT_WR)


def _hold(far: socket.socket, waiting: Queue[tuple[float, bytes]], delay_s: float) -> None:
    content = b"-"
    while content:
        try:
            content = far.recv(_READ_BYTES)
        except OSError:
            content = b""
        waiting.put((time.monotonic() + delay_s, content))


def _let_go(near: socket.socket, waiting: Queue[tuple[float, bytes]]) -> None:
    with suppress(OSError):
        while True:
            due_s, content = waiting.get()
            time.sleep(max(0.0, due_s - time.monotonic()))
            if not content:
                near.shutdown(socket.SHUT_WR)
                return
            near.sendall(content)
