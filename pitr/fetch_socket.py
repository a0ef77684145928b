"""The words between ``pitr wal fetch`` and the restore that feeds it, over a Unix socket.

One question per connection: a file's name and a line feed; one answer: ``ok``, the file is in the spool
now, or ``doubt`` and why.  Silence or a broken connection means that nobody is there.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOCKET_NAME = "fetch.sock"
SPOOL_NAME = "spool"
CONNECT_TIMEOUT_S = 5.0
# Longer than the feeder's own patience with the store, or its reason would never be heard.
ANSWER_TIMEOUT_S = 900.0
LINE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """What the feeder says: ``doubt`` is None when the file is in the spool."""

    doubt: str | None

    def encode(self) -> bytes:
        text = "ok" if self.doubt is None else f"doubt {' '.join(self.doubt.split())}"
        return text.encode("utf-8", "replace")[: LINE_BYTES_MAX - 1] + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Answer | None:
        """Return the answer of a whole line; None if the feeder went away before it had one."""
        if line == b"ok\n":
            return cls(None)
        if line.startswith(b"doubt ") and line.endswith(b"\n"):
            return cls(line[6:-1].decode("utf-8", "replace"))
        return None


@contextlib.contextmanager
def socket_address(folder: Path) -> Iterator[str]:
    """Yield an address of the socket in ``folder`` that fits into 108 bytes, however deep the folder is."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def ask(folder: Path, name: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer | None:
    """Ask the feeder of ``folder`` for a file; None if there is no feeder.

    It blocks until the feeder has the file or gives up.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_TIMEOUT_S)
        try:
            with socket_address(folder) as address:
                connection.connect(address)
            connection.settimeout(timeout_s)
            connection.sendall(name.encode("ascii", "replace") + b"\n")
            return Answer.decode(read_line(connection))
        except TimeoutError:
            return Answer(f"the restore gave no answer about {name} in {timeout_s:g} s")
        except OSError:
            return None


def read_line(connection: socket.socket) -> bytes:
    """Return the peer's one line, cut at LINE_BYTES_MAX; without a line feed if the peer went away."""
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
        received = connection.recv(LINE_BYTES_MAX - len(line))
        if not received:
            break
        line += received
    return line
