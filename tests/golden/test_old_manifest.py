"""Manifests that earlier versions wrote are read as ever, and written again to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from pitr.catalogue.backup_record import BackupManifest


def test_a_manifest_of_before_resumed_backups_is_read() -> None:
    payload = json.loads((Path(__file__).parent / "manifest-2026-11-25.json").read_text())
    manifest = BackupManifest.from_payload(payload)
    # All of its packs are sealed with its own key.
    assert manifest.key_ids == {bytes.fromhex(payload["key_id"])}
    assert manifest.resumed_bytes == 0
    assert [pack.key for pack in manifest.packs] == [pack["key"] for pack in payload["packs"]]
    assert manifest.to_payload() == payload
