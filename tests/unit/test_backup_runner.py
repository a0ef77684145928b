"""Who waits for a backup that the daemon takes: what is seen of it, and what is told at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cli.backup_runner import BackupRunner
from pitr.backup_choice import BackupKind
from pitr.backup_tally import BackupProgress
from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import AlreadyRunning, BackupFailed


def test_whoever_waits_is_not_told_of_a_beginning_after_the_end() -> None:
    may_end = threading.Event()
    looked: list[str] = []

    def take(
        _label: str,
        _kind: BackupKind,
        _cancel: threading.Event,
        progress: Callable[[BackupProgress], None],
        _note: Callable[[str], None],
    ) -> BackupManifest:
        progress(BackupProgress(phase="copying"))
        assert may_end.wait(30)
        raise BackupFailed("it is over")

    runner = BackupRunner(take)
    ticket = runner.ask_for("by hand", "full")

    def run() -> None:
        with pytest.raises(BackupFailed, match="it is over"):
            runner.run(threading.Event())

    thread = threading.Thread(target=run)
    thread.start()

    def look(progress: BackupProgress | None) -> None:
        looked.append("starting" if progress is None else progress.phase)
        if looked[-1] == "copying":
            may_end.set()

    outcome = runner.wait(ticket, 30.0, look, every_s=0.2)
    thread.join(30)
    assert isinstance(outcome.failure, BackupFailed)
    assert looked[-1] == "copying"
    assert "starting" not in looked[looked.index("copying") :]


def test_what_was_asked_for_and_has_not_begun_is_not_made_another_kind_of_backup() -> None:
    taken: list[tuple[str, BackupKind]] = []

    def take(
        label: str,
        kind: BackupKind,
        _cancel: threading.Event,
        _progress: Callable[[BackupProgress], None],
        _note: Callable[[str], None],
    ) -> BackupManifest:
        taken.append((label, kind))
        raise BackupFailed("it is over")

    runner = BackupRunner(take)
    runner.ask_for("before the upgrade", "full")
    with pytest.raises(AlreadyRunning, match="asked for already") as caught:
        runner.ask_for("earlier: the objective", "incr")
    assert caught.value.detail == "'before the upgrade', of type full"
    for _ in range(2):
        with pytest.raises(BackupFailed, match="it is over"):
            runner.run(threading.Event())
    assert taken == [("before the upgrade", "full"), ("scheduled backup", "auto")]
    assert runner.ask_for("again", "incr") == 3
