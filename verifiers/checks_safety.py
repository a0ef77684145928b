"""C17, C19 and C20: signs of rot, no way out of the scratch server, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.postgres.cut_off import has_own_network, interfaces_of
from pitr.rot_signals import is_alarming, rot_signals
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.rot_indicators import indicators
from verifiers.scratch_server import ScratchServer

# Where a value other than this is a way out; "archive_library" since 15.
CLOSED_SETTINGS: Final = {
    "archive_mode": "off",
    "archive_command": ("", "(disabled)"),
    "archive_library": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "listen_addresses": "",
    "synchronous_standby_names": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "max_logical_replication_workers": "0",
    "session_preload_libraries": "",
}
_SETTINGS: Final = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s) ORDER BY 1"
_PROCESSES: Final = """
SELECT backend_type, count(*) FROM pg_stat_activity
 WHERE backend_type IN ('archiver', 'walreceiver', 'walsender', 'logical replication launcher',
                        'logical replication worker', 'logical replication apply worker')
 GROUP BY 1 ORDER BY 1"""
_SHOWN_MAX: Final = 8


def check_signs(backup: BackupManifest, others: Sequence[BackupManifest], maker: CheckMaker) -> CheckResult:
    """C17: what the signed manifest says of the files, against the backups before it."""

    def judge() -> Judgement:
        signals = rot_signals(backup, others)
        expected = "no page that is none, no alien file, no relation that no longer compresses"
        said = "; ".join(f"{one.level}: {one.subject}: {one.message}" for one in signals[:_SHOWN_MAX])
        figures = indicators(backup, others)
        lines = [f"{one.level} {one.subject} {one.message}" for one in signals]
        lines += [f"{one.name}: {one.value}; usually {one.baseline}" for one in figures]
        evidence = "\n".join(lines).encode()
        if is_alarming(signals):
            return failed(expected, f"{len(signals)} signals", said, evidence)
        if signals:
            return Judgement(Outcome.WARNED, expected, f"{len(signals)} signals", said, evidence)
        return passed(expected, f"no signal; {figures[0].name}: {figures[0].value}", evidence)

    return maker.run("C17", f"judge the signs in the manifest of {backup.backup}", judge)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What was seen of the scratch server's network, and how."""

    is_cut_off: bool
    shown_by: str


def look_at_network(pid: int | None, why_not: str | None) -> Isolation:
    """Return what the kernel says of the server's network; ``why_not``: why it was not cut off."""
    if pid is None:
        return Isolation(False, "the server does not run")
    names = interfaces_of(pid)
    if names == () and has_own_network(pid):
        return Isolation(True, "a network namespace of its own, without an interface (/proc/PID/net/dev)")
    if names is None:
        return Isolation(False, "its interfaces cannot be seen")
    because = f"no namespace could be made: {why_not}" if why_not else "it was not asked for"
    return Isolation(False, f"it shares the host's network ({because}); it listens on a Unix socket only")


def check_isolation(
    server: ScratchServer, isolation: Isolation, preloaded: Iterable[str], maker: CheckMaker
) -> CheckResult:
    """C19: settings, processes and network of the running scratch server.

    WARNED where the host allows no namespace: then only its settings keep it from going out.
    """
    allowed = set(preloaded)

    def judge() -> Judgement:
        names = [*CLOSED_SETTINGS, "shared_preload_libraries"]
        with server.session() as session:
            found = {str(name): str(value) for name, value in session.rows(_SETTINGS, [names])}
            processes = session.rows(_PROCESSES)
        faults = []
        for name, wanted in CLOSED_SETTINGS.items():
            is_closed = found.get(name, "") in (wanted if isinstance(wanted, tuple) else (wanted,))
            if not is_closed:
                # Not the value: a conninfo or a command may hold a secret.
                faults.append(f"{name} is set")
        loaded = {one.strip() for one in found.get("shared_preload_libraries", "").split(",") if one.strip()}
        faults += [f"{name} is preloaded and not allowed" for name in sorted(loaded - allowed)]
        faults += [f"a process {kind} runs" for kind, _ in processes]
        expected = "archive_mode off, no command, no connection to any other server, no network"
        observed = f"{isolation.shown_by}; {len(CLOSED_SETTINGS)} settings closed"
        evidence = "\n".join([observed, *faults, *sorted(loaded)]).encode()
        if faults:
            return failed(expected, f"{len(faults)} ways out", "; ".join(faults), evidence)
        if not isolation.is_cut_off:
            return Judgement(Outcome.WARNED, expected, observed, isolation.shown_by, evidence)
        return passed(expected, observed, evidence)

    return maker.run("C19", _SETTINGS + _PROCESSES, judge)


def check_wiped(folder: Path, removed_files: int, maker: CheckMaker) -> CheckResult:
    """C20: the folder is gone, and no process has a file in it open or works in it."""

    def judge() -> Judgement:
        expected = "the folder is gone, and no process holds a file of it"
        faults = []
        if os.path.lexists(folder):
            faults.append("the folder is still there")
        faults += [f"process {pid} still holds files of it" for pid in holders_of(folder)]
        observed = f"{removed_files} files removed"
        if faults:
            return failed(expected, observed, "; ".join(faults[:_SHOWN_MAX]))
        return passed(expected, f"{observed}, the folder is gone, no process holds a file of it")

    return maker.run(
        "C20", "remove the scratch folder, then look for it and for who holds files of it", judge
    )


def holders_of(folder: Path) -> list[int]:
    """Return the processes that can be seen to work in ``folder`` or to have a file of it open."""
    prefix = f"{folder}/"
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        links = [process / "cwd", process / "exe"]
        # Another user's, or it has just ended.
        with contextlib.suppress(OSError):
            links += list((process / "fd").iterdir())
        targets = filter(None, map(_target, links))
        if any(one.startswith(prefix) or one in (str(folder), f"{folder} (deleted)") for one in targets):
            found.append(int(process.name))
    return sorted(found)


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None
