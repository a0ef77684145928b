"""Base backups that are killed on the way: the next one goes on with what is stored and still the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import Judge
from fix_resume import RESUME_SETTINGS, Interruptions, fill_tables


@pytest.fixture
def interruptions(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> Interruptions:
    server = postgres_factory(17, settings=RESUME_SETTINGS, name="resumed")
    fill_tables(server)
    return Interruptions(server, postgres_house, server_tmp_path, judge)


def test_a_killed_backup_is_gone_on_with(interruptions: Interruptions) -> None:
    it = interruptions
    it.interrupt(8)
    (journal,) = it.journals()
    assert journal.stat().st_mode & 0o777 == 0o600
    assert it.chain.house.listed() == []
    manifest = it.back_up()
    print(it.told(), len(it.packs_put()), len(manifest.packs), manifest.resumed_bytes, manifest.stored_bytes)
    assert journal.name.startswith(manifest.backup)
    assert "resuming" in it.told()
    resumed = [stored for stored in manifest.packs if stored.key_id is not None]
    assert len(resumed) == 8
    assert it.packs_put() == sorted(stored.key for stored in manifest.packs if stored.key_id is None)
    assert not it.journals()
    assert sorted(path.suffix for path in it.notes.iterdir()) == [".files"]
    it.check(it.chain.moments[-1])
