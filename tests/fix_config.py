"""A configuration's least tables, to which a test adds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pitr.pipeline.keys import Identity
from pitr.pipeline.sign import Signer

BASE = Path("/etc/pitr")


def least_tables(**more: Any) -> dict[str, Any]:
    """Return what every configuration has, and ``more``."""
    recipient = Identity.generate(lambda count: bytes(range(count))).recipient()
    return {
        "cluster": {"name": "clinic", "dsn": "host=/run/postgresql"},
        "repository": {"id": "0" * 32, "quorum": 1},
        "region": [{"name": "eu", "url": "file:///srv/eu"}],
        "keys": {
            "signing_key_file": "host.key",
            "root": str(Signer(bytes(32)).public),
            "recipients": [str(recipient)],
        },
        "daemon": {"state_dir": "state"},
        **more,
    }
