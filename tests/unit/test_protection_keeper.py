"""The keeper of the ladder: what is in force at each step, and that a release is undone whatever happens."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from structlog.testing import CapturingLogger

from cli.protection_keeper import ProtectionKeeper, ProtectionMark, SyncLook, Undone
from pitr.archive_values import Acknowledgement, ArchiveStatus
from pitr.catalogue.event_record import Happening
from pitr.errors import ServerRefused, ServerUnavailable
from pitr.event_log import NotesFailed
from pitr.protection import HOLD_S, Level, Protect, ProtectionPolicy
from pitr.quorum import WriteQuorum
from storage.regions import RegionStatus

BEGIN = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
AFTER_S = 5.0
IDLE = ArchiveStatus(True, None, None, None, None, None, 0, 0, 0, 0, 0, 0, None, None, None)


@dataclass
class World:
    """A server, three regions and an archiver, as far as the keeper sees them."""

    now_s: float = 0.0
    names: str = "pitr"
    released_from: str | None = None
    waiting: int = 0
    refusal: Exception | None = None
    regions: list[RegionStatus] = field(
        default_factory=lambda: [RegionStatus(name, True, 0, 0, None, None, None) for name in "abc"]
    )
    unflushed_s: float = 0.0
    required: int = 2
    force: Acknowledgement | None = None
    notes: list[str] = field(default_factory=list)
    notes_fail: bool = False
    # What each acknowledgement was worth while commits waited for it.
    worth: list[int] = field(default_factory=list)

    # As SyncServer.

    @property
    def has_released(self) -> bool:
        return self.released_from is not None

    def look(self) -> SyncLook:
        return SyncLook(self.names == "pitr", self.waiting, can_release=True)

    def release(self) -> Undone:
        if isinstance(self.refusal, ServerRefused):
            raise self.refusal
        if self.names:
            self.released_from = self.names
        if self.refusal is not None:
            raise self.refusal
        self.names, self.waiting = "", 0
        return Undone.NOTHING

    def hold_again(self) -> Undone:
        if self.refusal is not None:
            raise self.refusal
        if self.released_from is None:
            return Undone.NOTHING
        self.names, self.released_from = self.released_from, None
        self.worth.append(self.required)
        return Undone.HELD

    # As Store and Archiver.

    def require(self, quorum: int) -> None:
        self.required = quorum

    def acknowledge(self, how: Acknowledgement) -> None:
        self.force = how

    def note(self, happening: Happening) -> None:
        if self.notes_fail:
            raise NotesFailed("no room")
        self.notes.append(happening.event)

    # What happens.

    def regions_go(self) -> None:
        self.regions = [replace(one, is_healthy=False) for one in self.regions]
        self.waiting, self.unflushed_s = 1, 100.0

    def regions_return(self, *, pending: bool = False) -> None:
        """With all, or with something that is only a moment old, on its way."""
        at = BEGIN + timedelta(seconds=self.now_s) if pending else None
        self.regions = [replace(one, is_healthy=True, oldest_pending_at=at) for one in self.regions]
        self.waiting, self.unflushed_s = 0, 0.0


@dataclass
class _Store:
    world: World

    def require(self, quorum: int) -> None:
        self.world.require(quorum)

    def status(self) -> tuple[RegionStatus, ...]:
        return tuple(self.world.regions)


@dataclass
class _Archiver:
    world: World

    def acknowledge(self, how: Acknowledgement) -> None:
        self.world.acknowledge(how)

    def status(self) -> ArchiveStatus:
        return replace(IDLE, oldest_unflushed_age_s=self.world.unflushed_s)


class Kept:
    """A keeper whose seconds pass when told."""

    def __init__(self, world: World, folder: Path, protect: Protect = Protect.PRIMARY) -> None:
        self.world = world
        self.mark = folder / "protection.json"
        self.lines = CapturingLogger()
        self.keeper = ProtectionKeeper(
            ProtectionPolicy(protect, AFTER_S),
            WriteQuorum(3, 2),
            ProtectionMark(self.mark),
            world,
            _Store(world),
            _Archiver(world),
            note=world.note,
            now=lambda: BEGIN + timedelta(seconds=world.now_s),
            monotonic=lambda: world.now_s,
            log=structlog.wrap_logger(
                self.lines, processors=[], wrapper_class=structlog.make_filtering_bound_logger(0)
            ),
            count=lambda _: None,
        )
        self.keeper.begin()

    def run(self, seconds: float) -> list[Level]:
        """Let time pass, a look each second; return the levels that there were, each once in a row."""
        levels: list[Level] = []
        for _ in range(round(seconds)):
            self.world.now_s += 1
            self.keeper.step()
            if not levels or levels[-1] is not self.keeper.level:
                levels.append(self.keeper.level)
        return levels


def settling(kept: Kept) -> None:
    """Let the regions come back until the quorum is asked for again; something of before stays on its way."""
    for _ in range(round(HOLD_S) + 1):
        kept.world.regions_return(pending=True)
        kept.run(1)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    made = Kept(World(), tmp_path)
    made.run(1)
    return made


def test_all_steps_down_and_back_are_signed_and_undone(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    assert kept.run(20) == [Level.SPOOLED, Level.ASYNCHRONOUS]
    assert (world.names, world.released_from) == ("", "pitr")
    world.regions_return()
    assert kept.run(HOLD_S + 5)[-1] is Level.QUORUM
    assert (world.names, world.released_from, world.required) == ("pitr", None, 2)
    assert world.notes == [
        "protection-lowered",
        "protection-lowered",
        "commits-released",
        "commits-held-again",
        "protection-restored",
    ]
    assert not kept.mark.exists()


def test_a_commit_that_waits_again_is_never_told_of_less_than_the_quorum(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    kept.run(20)
    # What came while nobody waited is still on its way: the promise is not whole yet.
    world.regions_return(pending=True)
    for _ in range(40):
        kept.run(1)
        if world.names == "pitr":
            assert world.required == 2
            assert world.force is not None
            assert not world.force.counts_spooled
            assert world.force.quorum == WriteQuorum(3, 2)
        world.regions_return(pending=world.now_s < 40)
    assert world.worth == [2], "a commit could return between the two"
    assert world.force is not None
    assert world.force.is_synchronous
    assert kept.keeper.level is Level.QUORUM


def test_a_daemon_that_is_not_seen_for_a_moment_while_it_settles_promises_no_less(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    kept.run(2)
    assert kept.keeper.level is Level.SPOOLED
    settling(kept)
    assert world.required == 2
    # The stream breaks, and is there again.
    world.names = ""
    kept.run(1)
    world.names = "pitr"
    kept.run(1)
    assert kept.keeper.level is Level.SPOOLED
    assert world.required == 2
    assert world.force is not None
    assert not world.force.counts_spooled


def test_a_quorum_that_goes_while_it_settles_is_lost_once_more(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    kept.run(20)
    settling(kept)
    assert world.names == "pitr"
    assert kept.keeper.level is Level.ASYNCHRONOUS
    world.regions_go()
    assert kept.run(20) == [Level.ASYNCHRONOUS, Level.SPOOLED, Level.ASYNCHRONOUS]
    assert world.names == ""


def test_a_server_that_does_not_follow_is_asked_again_and_it_is_undone_all_the_same(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    world.refusal = ServerUnavailable("altered, and the server does not follow")
    kept.run(20)
    assert kept.keeper.level is Level.ASYNCHRONOUS
    assert world.names == "pitr"
    world.refusal = None
    kept.run(AFTER_S + 1)
    assert world.names == ""
    world.regions_return()
    kept.run(HOLD_S + 5)
    assert (world.names, world.released_from) == ("pitr", None)


def test_a_refused_release_leaves_the_step_above_in_force(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    world.refusal = ServerRefused("may not")
    assert kept.run(20) == [Level.SPOOLED]
    assert world.force is not None
    assert world.force.counts_spooled
    assert ProtectionMark(kept.mark).read() is Level.SPOOLED


def test_without_a_note_no_step_is_taken(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    world.notes_fail = True
    assert kept.run(20) == [Level.QUORUM]
    assert world.names == "pitr"
    assert world.required == 2


def test_commits_that_were_held_again_stay_so_if_that_cannot_be_noted(kept: Kept) -> None:
    world = kept.world
    world.regions_go()
    kept.run(20)
    world.regions_return()
    world.notes_fail = True
    kept.run(HOLD_S + 5)
    assert (world.names, world.required) == ("pitr", 2)
    world.notes_fail = False
    kept.run(2)
    assert world.notes[-1] == "protection-restored"
    assert kept.keeper.level is Level.QUORUM


@pytest.mark.parametrize("mark", [None, '{"level": 2}', "torn"])
def test_a_release_of_an_earlier_run_is_undone_whatever_the_mark_says(
    tmp_path: Path, mark: str | None
) -> None:
    if mark is not None:
        (tmp_path / "protection.json").write_text(mark)
    kept = Kept(World(names="", released_from="pitr"), tmp_path)
    assert kept.keeper.level is Level.ASYNCHRONOUS
    kept.run(HOLD_S + 5)
    assert kept.world.names == "pitr"
    assert kept.keeper.level is Level.QUORUM


def test_commits_that_wait_on_the_last_step_are_released_again(tmp_path: Path) -> None:
    """A new primary, with a setting of its own: or a crash between the mark and the release."""
    (tmp_path / "protection.json").write_text('{"level": 3}')
    world = World()
    kept = Kept(world, tmp_path)
    world.regions_go()
    kept.run(2)
    assert world.names == ""
    # And not again and again, should the owner want it otherwise.
    world.names, world.waiting = "pitr", 1
    kept.run(AFTER_S - 2)
    assert world.names == "pitr"


def test_what_nobody_foresaw_does_not_end_the_ladder(kept: Kept) -> None:
    """Its thread is the only one that lets commits go where the regions are away."""
    tripped, went_on = threading.Event(), threading.Event()

    def look() -> SyncLook:
        if not tripped.is_set():
            tripped.set()
            raise ZeroDivisionError("nobody foresaw it")
        went_on.set()
        return SyncLook(is_synchronous=True, commits_waiting=0, can_release=True)

    kept.world.look = look  # type: ignore[method-assign]
    kept.keeper.start()
    try:
        assert went_on.wait(30.0)
    finally:
        kept.keeper.stop()
    assert any("failed, and is tried again" in str(call) for call in kept.lines.calls)
