"""A restore in a process of its own that kills itself at a named point: ``SIGKILL``, as a power cut does.

Arguments: repository folder, identity text, target, PostgreSQL's major and bin directory, kill point.
A kill point is KIND:N: the Nth progress of files (``file``), the Nth look at the clock before arrival at the
target (``clock``) or after it (``arrived``), the Nth look at replay (``replay``), or the Nth that the server
answered (``answered``); of what is done to names, the Nth rename (``rename``) or the Nth file or folder that
is deleted (``delete``), before it is done.  The words ``delta``, ``none`` (for the action), ``narrow`` (for a
spool of two segments) and OID=PLACE may follow.  How often replay is looked at depends on the machine: only
its first is certain.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    here = Path(__file__).parent
    sys.path[:0] = [str(here.parent), str(here)]
    from fix_restore import reader_of

    from pitr.postgres.installation import find_pg
    from pitr.postgres.instance import readable_installation, server_user
    from pitr.prefetch import AHEAD_BYTES_MAX
    from pitr.recover import ReplayProgress
    from pitr.recovery import RecoveryTarget
    from pitr.restore import restore
    from pitr.restore_files import FileProgress
    from pitr.restore_request import Progress, RestoreRequest

    folder, identity, target, major, bin_dir, point, *more = sys.argv[1:]
    kind, _, count = point.partition(":")
    spaces = [(oid, Path(place)) for oid, mark, place in (word.partition("=") for word in more) if mark]
    left = {kind: int(count)}
    has_arrived = False
    events = {"os.rename": "rename", "os.remove": "delete", "os.rmdir": "delete"}

    def pass_by(event: str) -> None:
        if event in left:
            left[event] -= 1
            if left[event] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_progress(progress: Progress) -> None:
        nonlocal has_arrived
        if isinstance(progress, FileProgress):
            pass_by("file")
        if isinstance(progress, ReplayProgress):
            has_arrived = has_arrived or progress.lsn == progress.target
            pass_by("replay")
            if progress.lsn is not None:
                pass_by("answered")

    def clock() -> float:
        pass_by("arrived" if has_arrived else "clock")
        return time.monotonic()

    def audit(event: str, _words: tuple[object, ...]) -> None:
        if event in events:
            pass_by(events[event])

    house = reader_of(Path(folder), identity)
    found = find_pg(int(major), preferred=Path(bin_dir))
    user = server_user(must_run=[sys.executable, "--version"])
    installation = readable_installation(found, user, lambda: Path(tempfile.gettempdir()))
    request = RestoreRequest(
        plan=house.plan(RecoveryTarget("latest")),
        target=Path(target),
        action="none" if "none" in more else "promote",
        installation=installation,
        fetch_command=(),
        user=user,
        server_settings={"fsync": "off"},
        is_delta="delta" in more,
        ahead_bytes_max=1 if "narrow" in more else AHEAD_BYTES_MAX,
        tablespace_mapping=dict(spaces),
    )
    sys.addaudithook(audit)
    restore(request, house.repository, house.data_keys, on_progress=on_progress, monotonic=clock)


if __name__ == "__main__":
    main()
