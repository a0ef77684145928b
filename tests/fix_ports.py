"""Free ports on the loopback address, below the range from which the kernel takes ports for clients.

A server that is stopped and started again must find its port free, and a port from the kernel's own
range may meanwhile belong to an outgoing connection.
"""

from __future__ import annotations

import itertools
import os
import socket

HOST = "127.0.0.1"
_FIRST, _COUNT = 20_000, 10_000
# Each process begins elsewhere, so that parallel workers rarely meet.
_candidates = itertools.count(os.getpid() * 61)


def free_port() -> int:
    """Return a port that nobody listens on now.  The caller tries again if it is taken meanwhile."""
    for step in range(_COUNT):
        port = _FIRST + (next(_candidates) + step) % _COUNT
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {HOST} from {_FIRST} to {_FIRST + _COUNT}")
