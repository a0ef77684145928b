"""The doctor tells of what the daemon has met in the regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fix_snapshot import NOW, SNAPSHOT

from cli.control import ControlRequest
from cli.control_server import ControlServer
from cli.doctor_copies import copy_findings, examine_copies
from cli.settings import DaemonSettings
from cli.snapshot import BeginningSnapshot, BeginningState, RegionReached
from verifiers.base import Finding, Severity


def region(name: str, *keys: str) -> dict[str, object]:
    named = [{"key": key, "kind": "damaged", "detail": f"object {key} holds junk"} for key in keys]
    return {"name": name, "bad_copies": len(keys), "bad_copies_named": named}


def test_a_region_with_bad_copies_is_warned_of_with_the_first_and_what_to_do() -> None:
    good, bad, worse = copy_findings([region("a"), region("b", "heads/1"), region("c", "wal/1", "wal/2")])
    assert (good.id, good.severity, good.hint) == ("region.a.copies", Severity.OK, None)
    assert (bad.id, bad.severity) == ("region.b.copies", Severity.WARN)
    assert bad.message == (
        "1 copy is damaged or in the way of a put, first heads/1: object heads/1 holds junk"
    )
    assert "pitr repair" in str(bad.hint)
    assert worse.message.startswith("2 copies are damaged or in the way of a put, first wal/1")


def test_without_a_daemon_nobody_has_met_any(tmp_path: Path) -> None:
    assert list(examine_copies(DaemonSettings(state_dir=tmp_path))) == []


def told_by(status: Mapping[str, Any], state_dir: Path) -> list[Finding]:
    """Return what the doctor says where a daemon answers with ``status``."""

    def answer(_request: ControlRequest, _progress: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        return status

    daemon = DaemonSettings(state_dir=state_dir)
    server = ControlServer(daemon.control_path, answer)
    server.start()
    try:
        return list(examine_copies(daemon))
    finally:
        server.stop()


def test_a_daemon_that_waits_to_begin_has_met_none_either(tmp_path: Path) -> None:
    regions = (RegionReached("eu", False, "connection refused"),)
    waiting = BeginningState.WAITING_FOR_REGIONS
    begun = BeginningSnapshot(NOW, NOW, 1, "main", 1, waiting, "no region answers", regions)
    assert told_by(begun.to_fields(), tmp_path) == []
    # One that archives is believed.
    assert [one.id for one in told_by(SNAPSHOT.to_fields(), tmp_path)] == ["region.eu.copies"]
