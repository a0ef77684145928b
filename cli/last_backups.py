"""What was backed up before this daemon began: asked of the regions until they say it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cli.daemon_begin import START_PAUSE_S
from pitr.errors import PitrError
from storage.store import StoreError

if TYPE_CHECKING:
    from pitr.repository import ManifestListing

# What a person has to mend first is asked again at least so often.
PAUSE_S_MAX: Final = 60.0


def wait_for_backups(
    read: Callable[[], ManifestListing],
    stopping: threading.Event,
    tell: Callable[[str], None],
    *,
    pause_s: float = START_PAUSE_S,
) -> ManifestListing | None:
    """Return what ``read`` returns, repeated whatever the regions answer; None if ``stopping`` came first.

    ``tell`` is given each reason once in a row.  A region that refuses, or a record that is not authentic,
    must not leave a daemon without scheduled backups: nobody would see that before one is needed.
    """
    told: str | None = None
    while not stopping.is_set():
        try:
            return read()
        except (StoreError, PitrError) as error:
            if str(error) != told:
                tell(str(error))
            told = str(error)
        stopping.wait(pause_s)
        pause_s = min(pause_s * 2, PAUSE_S_MAX)
    return None
