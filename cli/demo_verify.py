"""The demo's end: what is left of the repository is verified, and the signed report laid beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cli.verify_settings import KEY_NAME, PUBLIC_KEY_NAME


def verify_what_is_left(
    pitr: Callable[..., Mapping[str, Any]], folder: Path, identity: Path, moment: datetime, lost_region: str
) -> Mapping[str, Any]:
    """Make the verifier's key and verify the moment; return what ``pitr verify`` answers.  Raises PitrError.

    ``pitr`` runs the program.  Below ``folder``: keys/, reports/, and a scratch folder, which is wiped.
    """
    config = str(folder / "host" / "pitr.toml")
    keys = folder / "keys"
    pitr("verifier", "init", "--key", str(keys / KEY_NAME), "--public", str(keys / PUBLIC_KEY_NAME))
    words = ["-c", config, "verify", "--at", moment.isoformat(), "--identity", str(identity)]
    words += ["--key", str(keys / KEY_NAME), "--reports", str(folder / "reports")]
    words += ["--scratch", str(folder / "v"), "--without-region", lost_region]
    return pitr(*words, allowed=(0, 7))


def describe_verdict(verified: Mapping[str, Any]) -> str:
    """Return in words what came of it."""
    checks = verified["checks"]
    passed = sum(check["result"] == "PASSED" for check in checks)
    skipped = [check["id"] for check in checks if check["result"] == "SKIPPED"]
    text = f"{verified['verdict']}: {passed} of {len(checks)} checks passed"
    if skipped:
        text += f", {', '.join(skipped)} not tested"
    return f"{text}; the report is signed by the verifier's own key"
