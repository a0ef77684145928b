"""How this program starts itself: for ``restore_command``, and for the demo's daemon."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def own_command() -> tuple[str, ...]:
    """Return the words that run ``pitr`` with this interpreter, from any directory and by any user.

    ``-P``: PostgreSQL runs us in its data directory, from which no module may be taken.
    """
    python = (sys.executable, "-P", "-m", "cli.main")
    try:
        metadata.distribution("pitr")
    except metadata.PackageNotFoundError:
        # A checkout that was not installed: its folder has to be named.
        return ("/usr/bin/env", f"PYTHONPATH={ROOT}", *python)
    return python
