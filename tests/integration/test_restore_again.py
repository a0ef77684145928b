"""``pitr restore --to latest`` that failed half-way: typed again it goes on to what it meant at first."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from fix_cli import Done, PitrProgram
from fix_postgres import PostgresFactory, PostgresHouse, table_digests
from fix_restore import HISTORY_SETTINGS, History, Judge, commit_row, make_history, take_test_backup
from fix_verify import put_head

from pitr.errors import RestoreRefused
from pitr.pipeline.keys import IdentityFile
from pitr.quorum import WriteQuorum
from pitr.restore_again import interrupted_aim
from pitr.restore_journal import WorkDirectory
from storage.local import DirectoryStore


@pytest.fixture
def history(postgres_factory: PostgresFactory, postgres_house: PostgresHouse, tmp_path: Path) -> History:
    server = postgres_factory(settings=HISTORY_SETTINGS, name="again")
    made = make_history(server, postgres_house.user, DirectoryStore.create(tmp_path / "region"))
    put_head(made, WriteQuorum(1, 1))
    identity = made.restores.identity
    sheet = IdentityFile(identity, made.restores.repository.repository_id, identity.root_signer().public)
    (tmp_path / "identity.toml").touch(mode=0o600)
    (tmp_path / "identity.toml").write_text(sheet.render())
    return made


def restore_latest(tmp_path: Path, into: Path, *more: str, to: str = "latest", exit_code: int = 0) -> Done:
    words = ["--identity", str(tmp_path / "identity.toml"), "--from", (tmp_path / "region").as_uri()]
    program = PitrProgram(tmp_path)
    return program(
        *("restore", "--to", to, "--into", into, *words, "--yes", "--json", *more),
        exit_code=exit_code,
        timeout_s=400,
    )


@pytest.mark.timeout(900)  # four runs of the program, one after the other
def test_the_same_words_go_on_to_what_they_meant_the_first_time(
    history: History, tmp_path: Path, server_tmp_path: Path, judge: Judge
) -> None:
    into = server_tmp_path / "restored"
    # Recovery cannot ask its server, and fails when the files are in their place.
    restore_latest(tmp_path, into, "--superuser", "nobody_here", exit_code=7)
    work = WorkDirectory.of(into)
    journal, aim = work.read(), interrupted_aim(into, replaces=False)
    assert journal is not None
    assert aim is not None

    # The archive's end moves, and another backup would be better by now.
    commit_row(history.server, 5)
    history.server.switch_wal()
    commit_row(history.server, 6)
    take_test_backup(history.archiver)
    history.archiver.ship()
    refused = restore_latest(tmp_path, into, to="immediate", exit_code=1)
    assert "interrupted restore of another plan" in refused.stderr
    assert f"latest, which was {aim.replay_end} on timeline {aim.timeline} then" in refused.stderr
    assert f"pitr restore --to latest --into {shlex.quote(str(into))}" in refused.stderr

    gone = replace(aim, backup="20200101T000000Z-full-00000000")
    work.write(replace(journal, aim=gone))
    lost = restore_latest(tmp_path, into, exit_code=1)
    assert f"there is no backup {gone.backup}" in lost.stderr
    assert "begin anew" in lost.stderr

    work.write(journal)
    done = restore_latest(tmp_path, into)
    assert f"goes on with {aim}" in done.stderr
    assert done.data["replay_end"] == str(aim.replay_end)
    assert (done.data["backup"], done.data["fetched_bytes"]) == (aim.backup, 0)
    assert table_digests(judge.start(history, into).dsn) == history.end


def test_what_was_typed_is_kept_and_a_journal_without_it_is_read(tmp_path: Path) -> None:
    work = WorkDirectory(tmp_path / "data.pitr")
    work.path.mkdir()
    fields = {"format": "pitr-restore/1", "plan": "aa", "phase": "recovering", "reason": None}
    file = work.path / "pitr-restore.json"
    file.write_text(json.dumps(fields))
    old = work.read()
    assert old is not None
    assert old.aim is None
    assert interrupted_aim(tmp_path / "data", replaces=False) is None
    file.write_text(json.dumps({**fields, "aim": {"target": "latest"}}))
    with pytest.raises(RestoreRefused, match="no work directory"):
        work.read()
