"""End with whoever started this process, also where that one was killed and could tell nobody.

The starter keeps one end of a pipe, which the kernel closes with it; the other end is named in a variable.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

VARIABLE: Final = "PITR_ENDS_WITH"


def end_with_starter() -> None:
    """From now on, take the starter's end for a SIGTERM; nothing if no starter named its pipe."""
    named = os.environ.pop(VARIABLE, None)
    if named is None or not named.isdecimal():
        return
    pipe = int(named)
    # No process that this one starts may keep it, nor take it for its own.
    os.set_inheritable(pipe, False)
    threading.Thread(target=_wait, args=(pipe,), name="ends-with", daemon=True).start()


def _wait(pipe: int) -> None:
    # Nobody writes to it: this returns when the other end is closed.
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)
