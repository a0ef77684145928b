"""``pitr doctor`` for the copies of regions: what the running daemon has met that is not what it must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.control import ControlRequest, ask_daemon
from cli.settings import DaemonSettings
from pitr.errors import PitrError
from verifiers.base import Finding, Severity

_TIMEOUT_S = 5.0
_NEXT = "look at it there, remove it by hand, then: pitr repair; docs/config-regions.md"


def examine_copies(daemon: DaemonSettings) -> Iterator[Finding]:
    """Yield a finding for each region; none where no daemon archives, for then nobody has met any."""
    try:
        seen = ask_daemon(daemon.control_path, ControlRequest("status"), timeout_s=_TIMEOUT_S)
    except PitrError:
        return
    # One that waits for its server or the regions says of a region only whether it answers.
    if seen["state"] == "running":
        yield from copy_findings(seen["regions"])


def copy_findings(regions: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Make the findings of what the daemon says of its regions."""
    for region in regions:
        check, name, count = f"region.{region['name']}.copies", str(region["name"]), int(region["bad_copies"])
        if not count:
            yield Finding(check, Severity.OK, name, "the daemon has met no bad copy")
            continue
        named = region["bad_copies_named"]
        first = f", first {named[0]['key']}: {named[0]['detail']}" if named else ""
        copies = "1 copy is" if count == 1 else f"{count} copies are"
        yield Finding(check, Severity.WARN, name, f"{copies} damaged or in the way of a put{first}", _NEXT)
