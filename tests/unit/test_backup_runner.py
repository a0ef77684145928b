"""Who waits for a backup that the daemon takes: what is seen of it, and what is told at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cli.backup_runner import BackupRunner
from pitr.backup_choice import BackupKind
from pitr.backup_tally import BackupProgress
from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import BackupFailed


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
