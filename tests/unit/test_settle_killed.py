"""What killed runs left in the log: closed from the folder that they ran in, not by who cannot see them."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import fix_reports as fix

from cli.context import App
from cli.output import Output
from cli.verify_facts import begun_in, settle_killed
from cli.verify_log import OpenedLog
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.log_entry import EntryKind
from verifiers.scratch import ScratchRoot

if TYPE_CHECKING:
    from storage.replicated import ReplicatedStore

RUN = "018f0000-0000-7000-8000-000000000001"


def root_in(folder: Path) -> ScratchRoot:
    root = ScratchRoot(folder)
    root.prepare()
    return root


def log_in(store: MemoryStore) -> OpenedLog:
    return OpenedLog(AuditLog(store, fix.REPOSITORY, fix.VERIFIER), cast("ReplicatedStore", store))


def intend(opened: OpenedLog, root: ScratchRoot | None, at: datetime, **other: object) -> None:
    place = {} if root is None else begun_in(root)
    facts = {"system_identifier": str(fix.SYSTEM), **place, **other}
    opened.log.intend(EntryKind.VERIFICATION_INTENDED, RUN, facts, at)


def settle(root: ScratchRoot, store: MemoryStore) -> list[str]:
    """Settle as the next run does; return the reasons that the log has then."""
    opened = log_in(store)
    settle_killed(App(output=Output(stdout=io.StringIO(), stderr=io.StringIO())), root, opened)
    ends = [one for one in opened.log.entries() if one.kind == EntryKind.VERIFICATION_ENDED]
    return [one.text("reason") or "" for one in ends]


def test_a_run_that_has_wiped_its_place_and_reads_the_store_is_not_closed(tmp_path: Path) -> None:
    store, root, now = MemoryStore(), root_in(tmp_path / "scratch"), datetime.now(UTC)
    with root.place(RUN, now) as place:
        intend(log_in(store), root, now)
        place.wipe()
        assert settle(root, store) == []
    (reason,) = settle(root, store)
    assert reason.startswith("the run was killed")


def test_what_another_folder_or_host_has_begun_is_given_up_after_a_week_alone(tmp_path: Path) -> None:
    root, other = root_in(tmp_path / "scratch"), root_in(tmp_path / "other")
    now = datetime.now(UTC)
    for place in (begun_in(other), {**begun_in(root), "host": "another"}):
        young, old = MemoryStore(), MemoryStore()
        intend(log_in(young), None, now - timedelta(days=6), **place)
        intend(log_in(old), None, now - timedelta(days=8), **place)
        assert settle(root, young) == []
        (reason,) = settle(root, old)
        assert f"begun on {place['host']} in {place['scratch']}" in reason
        assert "8 days" in reason


def test_an_intent_that_does_not_say_where_it_runs_is_closed_by_the_next(tmp_path: Path) -> None:
    store = MemoryStore()
    intend(log_in(store), None, datetime.now(UTC))
    assert len(settle(root_in(tmp_path / "scratch"), store)) == 1
