"""The doctor tells of what the daemon has met in the regions."""

from __future__ import annotations

from pathlib import Path

from cli.doctor_copies import copy_findings, examine_copies
from cli.settings import DaemonSettings
from verifiers.base import Severity


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
