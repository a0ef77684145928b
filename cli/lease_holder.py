"""Who this process is to other hosts: host, process, and the state directory that it alone works on."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from pitr.catalogue.lease_record import Holder

_PLACE = "holder"


def own_holder(state_dir: Path) -> Holder:
    """Return the holder for a process that has the state directory's lock.

    Its id is made once and kept there, so that what a killed predecessor holds is known to be nobody's.
    """
    path = state_dir / _PLACE
    try:
        place = path.read_text("ascii", "replace").strip()
    except FileNotFoundError:
        place = ""
    if not re.fullmatch(r"[0-9a-f]{16}", place):
        place = os.urandom(8).hex()
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = path.with_suffix(".new")
        staged.write_text(f"{place}\n")
        staged.replace(path)
    return Holder.of_host(socket.gethostname(), os.getpid(), place)
