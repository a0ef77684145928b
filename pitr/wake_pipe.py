"""A pipe that wakes a thread which waits in ``select`` for a socket as well."""

from __future__ import annotations

import os
import threading
from contextlib import suppress


class WakePipe:
    """Thread-safe; whoever waits watches ``fd``, and it alone calls ``clear``."""

    def __init__(self) -> None:
        # Under a lock of its own: the number of a closed pipe may be another file's by now.
        self._lock = threading.Lock()
        self._is_closed = False
        self.fd, self._write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write, False)

    def clear(self) -> None:
        """Forget what has woken the waiter so far."""
        with suppress(BlockingIOError):
            while os.read(self.fd, 4096):
                pass

    def wake(self) -> None:
        """Wake the waiter, now or when it next waits.  A full pipe wakes as well as one byte more would."""
        with self._lock, suppress(BlockingIOError):
            if not self._is_closed:
                os.write(self._write, b"w")

    def close(self) -> None:
        """Give the pipe back, when the waiter has ended; others may still call ``wake``."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self.fd)
                os.close(self._write)
