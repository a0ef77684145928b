"""The stage of a search: one scratch server that is taken to one moment after the other.

Recovery only goes forward.  A later moment is reached from where the server stands, by one restart.  For an
earlier one there is a copy of the files as they were at the last good moment, if the disk copies by
reference or the cluster is small; else, and where a newer backup is nearer, it is restored anew.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pitr.datakeys import DataKeys
from pitr.errors import TargetRefused
from pitr.postgres.cut_off import why_not_cut_off
from pitr.postgres.installation import Installation
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser
from pitr.recover import RestoreAction
from pitr.recovery import RecoveryTarget
from pitr.repository import Repository
from pitr.restore import restore
from pitr.restore_journal import WorkDirectory, remove_tree
from pitr.restore_onward import Onward, go_on
from pitr.restore_plan import RestorePlan
from pitr.restore_request import Progress, RestoreRequest
from verifiers.find_way import Cost, Way, cheapest, forward_bytes, restore_bytes
from verifiers.scratch import MARK_NAME, ScratchPlace
from verifiers.verify_values import server_settings

# Copied byte by byte, a larger cluster costs more than it saves.
KEPT_BYTES_MAX: Final = 16 << 30
_RESERVE_BYTES: Final = 1 << 30
_COPY_TIMEOUT_S: Final = 6 * 3600.0
_STOP_TIMEOUT_S: Final = 600.0

# Gives the plan for a target; of this backup alone, if one is named.  Raises TargetRefused.
PlanTo = Callable[[RecoveryTarget, str | None], RestorePlan]


@dataclass(frozen=True, slots=True)
class StageSetting:
    """What a stage is made with."""

    place: ScratchPlace
    repository: Repository
    data_keys: DataKeys
    installation: Installation
    user: ServerUser | None
    superuser: str
    plan_to: PlanTo
    workers: int = 3
    wants_network_cut: bool = True


@dataclass(slots=True)
class StageTally:
    """How often each way was taken, a copy was kept, and recovery was ended for the sake of locks."""

    restores: int = 0
    forward: int = 0
    rewound: int = 0
    kept_copies: int = 0
    opened: int = 0


class Stage:
    """One server.  Not thread-safe; ``close`` ends it whatever happened."""

    def __init__(
        self,
        setting: StageSetting,
        *,
        on_progress: Callable[[Progress], None],
        cancel: threading.Event,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._setting = setting
        self._on_progress = on_progress
        self._cancel = cancel
        self._monotonic = monotonic
        self._request: RestoreRequest | None = None
        self._instance: Instance | None = None
        # Where the files stand; None where nothing of them can go on.
        self._here: RestorePlan | None = None
        self._kept: RestorePlan | None = None
        self._is_good = False
        self._keeps = True
        self._restore_s = 0.0
        self.tally = StageTally()
        no_namespace = why_not_cut_off(setting.user) if setting.wants_network_cut else "not wanted"
        self._is_cut_off = no_namespace is None

    @property
    def is_cut_off(self) -> bool:
        """Tell whether the server runs without a network."""
        return self._is_cut_off

    def go(self, target: RecoveryTarget) -> tuple[Instance, RestorePlan, Way]:
        """Take the server to ``target``; return it, paused there or opened, and how it came there.

        Raises as a restore does, and TargetRefused.
        """
        plan = self._setting.plan_to(target, None)
        way = self._choose(plan)
        stands = self._kept if way is Way.KEPT else self._here
        if way is not Way.RESTORE and stands is not None:
            try:
                plan = self._setting.plan_to(target, stands.backup.backup)
            except TargetRefused:
                # WAL between is missing: only a newer backup leads there.
                way = Way.RESTORE
        if way is Way.RESTORE:
            self._restore(plan)
        else:
            if way is Way.KEPT:
                self._rewind()
            elif self._is_good:
                self._keep()
            self._step(plan)
        self._is_good = False
        assert self._instance is not None, "it was kept running"
        return self._instance, plan, way

    def note_good(self) -> None:
        """Take note that the data is good here: no earlier moment will be wanted."""
        self._is_good = True

    def open(self) -> None:
        """End recovery where the server stands, so that no transaction holds a lock; it goes nowhere then."""
        assert self._here is not None, "it is paused there"
        # The end of recovery asks for history files: who answers must be there, so it is begun once more.
        self._step(self._here, "promote")
        self._here = None
        self.tally.opened += 1

    def close(self) -> None:
        """End the server.  May be repeated; the place is the caller's to wipe."""
        if self._instance is not None:
            self._instance.kill()
            # A long path has its socket elsewhere.
            if not self._instance.socket_dir.is_relative_to(self._setting.place.path):
                remove_tree(self._instance.socket_dir)
            self._instance = None

    # -- the ways

    def _choose(self, fresh: RestorePlan) -> Way:
        offers = [Cost(Way.RESTORE, restore_bytes(fresh))]
        for way, stands in ((Way.FORWARD, self._here), (Way.KEPT, self._kept)):
            cost = None if stands is None else forward_bytes(stands, fresh)
            if cost is not None and self._request is not None:
                offers.append(Cost(way, cost))
        return cheapest(offers)

    def _restore(self, plan: RestorePlan) -> None:
        self.close()
        self._here = self._kept = None
        setting = self._setting
        _clear(setting.place)
        begun = self._monotonic()
        request = RestoreRequest(
            plan=plan,
            target=setting.place.data_dir,
            action="pause",
            installation=setting.installation,
            fetch_command=(),
            tablespace_mapping={
                str(space.oid): setting.place.tablespace(space.oid) for space in plan.backup.tablespaces
            },
            user=setting.user,
            superuser=setting.superuser,
            # Each frame's tag was checked; the digests of whole files are a verification's to compare.
            verify_files=False,
            keep_running=True,
            workers=setting.workers,
            server_settings=server_settings(plan, setting.installation, ()),
            certificate=setting.place.certificate,
            # All that it makes must be gone with its folder.
            takes_spaces=False,
            is_cut_off=self._is_cut_off,
        )
        result = restore(
            request,
            setting.repository,
            setting.data_keys,
            on_progress=self._on_progress,
            cancel=self._cancel,
            monotonic=self._monotonic,
        )
        self._restore_s = self._monotonic() - begun
        self._request, self._instance = request, result.instance
        # Opened by itself, it goes nowhere any more.
        self._here = plan if result.has_paused else None
        self.tally.restores += 1

    def _step(self, plan: RestorePlan, action: RestoreAction = "pause") -> None:
        assert self._request is not None
        assert self._instance is not None
        assert self._here is not None
        request = replace(self._request, plan=self._here)
        self._here = None
        done = go_on(
            Onward(request, plan),
            self._instance,
            self._setting.repository,
            self._setting.data_keys,
            action=action,
            on_progress=self._on_progress,
            cancel=self._cancel,
            monotonic=self._monotonic,
        )
        self._here = plan if done.has_paused else None
        self.tally.forward += 1

    # -- the copy at the last good moment

    def _keep(self) -> None:
        """Copy the files before going on, if that is worth it."""
        assert self._instance is not None
        assert self._here is not None
        folder = self._setting.place.path / "kept"
        self._kept = None
        remove_tree(folder)
        if not self._keeps:
            return
        self._instance.stop("fast", timeout_s=_STOP_TIMEOUT_S)
        begun = self._monotonic()
        # On a disk that copies by reference this takes no room, and no time.
        if not self._copy(folder, "always"):
            size_bytes = self._here.backup.size_bytes
            room = shutil.disk_usage(self._setting.place.path).free
            if size_bytes > KEPT_BYTES_MAX or room < 2 * size_bytes + _RESERVE_BYTES:
                self._keeps = False
                return
            if not self._copy(folder, "never"):
                self._keeps = False
                return
        self._kept = self._here
        self.tally.kept_copies += 1
        # Every step costs a copy, and about every second one would cost a restore.
        self._keeps = self._monotonic() - begun < self._restore_s / 2

    def _copy(self, folder: Path, by_reference: str) -> bool:
        remove_tree(folder)
        folder.mkdir(mode=0o700)
        words = ["cp", "-a", f"--reflink={by_reference}", "--", *map(str, self._parts()), str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_COPY_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is not None and done.returncode == 0:
            return True
        remove_tree(folder)
        return False

    def _rewind(self) -> None:
        """Put the copy in the place of the files; they are the copy then, and must be copied again."""
        assert self._instance is not None
        assert self._kept is not None
        self._instance.kill()
        folder = self._setting.place.path / "kept"
        for part in self._parts():
            remove_tree(part)
        for part in folder.iterdir():
            part.rename(self._setting.place.path / part.name)
        folder.rmdir()
        self._here, self._kept = self._kept, None
        self.tally.rewound += 1
        self._keep()

    def _parts(self) -> list[Path]:
        """Return the directories that make up the cluster."""
        place = self._setting.place
        return [place.data_dir, *sorted(place.path.glob("tablespace-*"))]


def _clear(place: ScratchPlace) -> None:
    """Remove what an earlier restore left in the place."""
    with contextlib.suppress(FileNotFoundError):
        place.certificate.unlink()
    for entry in place.path.iterdir():
        if entry.name not in (MARK_NAME, place.programs.name) and entry.is_dir():
            remove_tree(entry)
    remove_tree(WorkDirectory.of(place.data_dir).path)
