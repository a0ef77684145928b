"""The watchdog at work: looks at the server each second, and releases or holds commits as it is decided.

What is done is noted before and after; a server that is away, a lost right, another watchdog are said once,
when they begin and when they end.  Nothing here ends it but being told to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from pitr.commit_release import Decision, ReleaseAction, ReleaseJudge, ReleaseLook, ReleasePolicy
from pitr.errors import MalformedValue, ServerRefused, ServerUnavailable
from pitr.postgres.sync_names import NOBODY, SyncNames
from pitr.postgres.sync_standby import GRANTS, SyncStandby, SyncView
from pitr.release_journal import Note, Release, ReleaseJournal, ReleaseStep, open_release

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from pitr.postgres.address import ServerAddress

LOOK_EVERY_S: Final = 1.0
RETRY_S: Final = 2.0
# What was refused is asked for again, but not each second.
REFUSED_PAUSE_S: Final = 30.0


class Watchdog:
    """The watchdog of one server at a time: the one that ``address`` leads to.  ``run`` in one thread.

    ``name`` is the daemon's ``application_name``.
    """

    def __init__(
        self,
        address: ServerAddress,
        name: str,
        policy: ReleasePolicy,
        journal: ReleaseJournal,
        log: FilteringBoundLogger,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        refused_pause_s: float = REFUSED_PAUSE_S,
    ) -> None:
        self._address: Final = address
        self._name: Final = name
        self._journal: Final = journal
        self._log: Final = log
        self._now: Final = now
        self._monotonic: Final = monotonic
        self._refused_pause_s: Final = refused_pause_s
        self._look_every_s: Final = min(LOOK_EVERY_S, policy.release_after_s / 4)
        self._judge: Final = ReleaseJudge(policy)
        self._release: Release | None = None
        self._server: str | None = None
        self._refused_until_s = float("-inf")
        self._is_refused = False
        self._complaint = ""

    def run(self, stopping: threading.Event) -> None:
        """Watch until told to stop."""
        while not stopping.is_set():
            try:
                session = SyncStandby.connect(self._address.find())
                try:
                    self._watch(session, stopping)
                finally:
                    session.close()
            except (ServerUnavailable, ServerRefused) as error:
                self._complain(f"the server cannot be looked at: {error.message}", error.hint)
                self._server = None
                stopping.wait(RETRY_S)

    def _watch(self, session: SyncStandby, stopping: threading.Event) -> None:
        while not session.is_alone():
            self._complain("another watchdog watches this server; this one stands by", None)
            if stopping.wait(RETRY_S):
                return
            self._address.check()
        while not stopping.is_set():
            self._address.check()
            if not self._step(session):
                # Another may lead meanwhile: it is asked anew where the primary is.
                stopping.wait(RETRY_S)
                return
            stopping.wait(self._look_every_s)

    def _step(self, session: SyncStandby) -> bool:
        """Look and act; False if this is a standby, which nothing waits on."""
        view = session.look()
        if view.is_standby:
            self._judge.forget()
            self._complain("the server is a standby; nothing waits there", None)
            return False
        if view.server != self._server:
            self._judge.forget()
            self._resume(session, view)
            self._server, view = view.server, session.look()
        self._check_release(view)
        if view.waiting.is_hidden or (names := _parsed(view.setting.names)) is None:
            self._complain("the role cannot see which commits wait", GRANTS[0].format(role="it"))
            return True
        self._complain("", None)
        self._act(session, view, names, self._judge.look(self._seen(view, names)))
        return True

    def _seen(self, view: SyncView, names: SyncNames) -> ReleaseLook:
        """Return what the decision needs of a look."""
        senders = [one for one in view.standbys if one.state not in ("backup", None)]
        ours = [one for one in senders if one.application_name.lower() == self._name.lower()]
        others = [
            one.application_name
            for one in senders
            if one not in ours and one.state == "streaming" and one.flushed is not None
        ]
        flushed = max((one.flushed for one in ours if one.flushed is not None), default=None)
        assert view.end is not None, "a primary has an end of WAL"
        return ReleaseLook(
            at_s=self._monotonic(),
            waiting=view.waiting.sessions,
            hangs_without_us=names.hang_without(self._name, others),
            streams=bool(ours),
            flushed=flushed,
            end=view.end,
            is_released=self._release is not None,
        )

    def _resume(self, session: SyncStandby, view: SyncView) -> None:
        """Find out what the last run, which may have been killed at any point, has left behind."""
        release = self._release or open_release(self._notes())
        self._release = None
        if release is None:
            return
        if release.server != view.server:
            where = f"commits were released on another server ({release.server}) and are not held again there"
            self._note(ReleaseStep.LEFT, where, release)
            self._log.critical(where, before=release.before)
            return
        # It may have been altered, and not yet read.
        setting = session.reload() if session.rights().may_reload else view.setting
        if setting.names == release.released and setting.is_in_auto_conf:
            self._release = release
            self._note(ReleaseStep.RELEASED, "found so at the start", release)
            self._log.critical("commits do not wait for the archive: released before this start")
        elif setting.names == release.before:
            self._note(ReleaseStep.HELD, "found so at the start", release)
            self._log.info("commits wait for the archive, as before a release that was not completed")
        else:
            self._let_go(release, setting.names)

    def _check_release(self, view: SyncView) -> None:
        release, setting = self._release, view.setting
        if release is not None and not (setting.names == release.released and setting.is_in_auto_conf):
            self._release = None
            self._let_go(release, setting.names)

    def _let_go(self, release: Release, names: str) -> None:
        """Somebody else has changed the setting: theirs it is from now on."""
        reason = f"synchronous_standby_names was changed by somebody else, to {names!r}: it is left so"
        self._note(ReleaseStep.LEFT, reason, release)
        self._log.warning(reason, before=release.before)

    def _act(self, session: SyncStandby, view: SyncView, names: SyncNames, decision: Decision) -> None:
        if decision.action is ReleaseAction.WARN:
            self._note(ReleaseStep.WARNED, decision.reason)
            self._log.critical(f'{decision.reason}; protect = "data" lets them wait', next="pitr status")
        elif decision.action is ReleaseAction.NONE or self._monotonic() < self._refused_until_s:
            return
        elif decision.action is ReleaseAction.HOLD_AGAIN:
            self._hold_again(session, decision.reason)
        elif not view.setting.is_ours_to_change:
            self._refused(f"{decision.reason}, and the setting stands in {view.setting.stands_in}", None)
        else:
            left = str(names.without(self._name))
            release = Release(view.server, view.setting.names, view.setting.is_in_auto_conf, left)
            self._let_commits_go(session, release, decision.reason)

    def _let_commits_go(self, session: SyncStandby, release: Release, reason: str) -> None:
        if not session.rights().suffice:
            self._refused(
                f"{reason}, and they may not be released", "; ".join(GRANTS).format(role="the role")
            )
            return
        self._note(ReleaseStep.RELEASING, reason, release)
        try:
            session.release(release.released)
        except ServerRefused as error:
            self._note(ReleaseStep.LEFT, error.message, release)
            self._refused(f"{reason}, and they could not be released: {error.message}", error.hint)
            return
        self._release, self._is_refused = release, False
        self._note(ReleaseStep.RELEASED, reason, release)
        self._log.critical(
            "commits were released: they do not wait for the archive any more",
            reason=reason,
            before=release.before,
            now=release.released,
        )

    def _hold_again(self, session: SyncStandby, reason: str) -> None:
        release = self._release
        assert release is not None, "only what was released is held again"
        self._note(ReleaseStep.HOLDING, reason, release)
        try:
            session.restore(release.before, was_in_auto_conf=release.was_in_auto_conf)
        except ServerRefused as error:
            self._refused(f"commits cannot be held again: {error.message}", error.hint)
            return
        self._release, self._is_refused = None, False
        self._note(ReleaseStep.HELD, reason, release)
        self._log.warning("commits wait for the archive again", reason=reason, now=release.before)

    def _refused(self, text: str, hint: str | None) -> None:
        self._refused_until_s = self._monotonic() + self._refused_pause_s
        # The figures in it grow with each try, and it is one trouble all the same.
        if not self._is_refused:
            self._note(ReleaseStep.FAILED, text)
            self._log.critical(text, next=hint)
        self._is_refused = True

    def _complain(self, text: str, hint: str | None) -> None:
        """Say what is wrong when it begins, and that it is over."""
        if text and text != self._complaint:
            self._log.warning(text, next=hint)
        elif self._complaint and not text:
            self._log.info("the watchdog watches")
        self._complaint = text

    def _notes(self) -> list[Note]:
        try:
            return self._journal.notes()
        except OSError as error:
            self._log.critical("the journal of releases cannot be read", reason=str(error))
            return []

    def _note(self, step: ReleaseStep, reason: str, release: Release | None = None) -> None:
        note = Note(self._now(), step, reason, release)
        try:
            self._journal.note(note)
        except OSError as error:
            # A disk that is full is often why commits hang: they are released all the same.
            self._log.critical("not noted in the journal of releases", reason=str(error), note=str(note))


def _parsed(text: str) -> SyncNames | None:
    try:
        return SyncNames.parse(text) if text else NOBODY
    except MalformedValue:
        return None
