"""``pitr wal fetch NAME DESTINATION --plan FILE``: what PostgreSQL runs as ``restore_command``.

Apart from the other commands, because it starts once per WAL segment and because PostgreSQL reads
its exit code in its own way: wrong usage, too, must stop recovery, so click and its exit code 2
stay out.  ``cli.wal`` has the help text.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pitr.wal_fetch import WalFetchRequest, fetch_wal
from pitr.wal_path import EXIT_DOUBT, EXIT_OUTSIDE_PATH

if TYPE_CHECKING:
    from cli.wiring import OpenedWal
    from pitr.wal_assembly import ReadWal
    from pitr.wal_plan_file import WalPlanHeader

_PLAN_VARIABLE = "PITR_WAL_FETCH_PLAN"
_STANDBY_VARIABLE = "PITR_WAL_FETCH_STANDBY"
_JSON_VARIABLE = "PITR_WAL_FETCH_JSON"
_YES = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class WalFetchArguments:
    """The command line, read."""

    name: str
    destination: Path
    plan_file: Path
    is_standby: bool


class WrongUsage(Exception):
    """The command line cannot be read; the text says why."""


def parse_arguments(words: Sequence[str], environment: Mapping[str, str]) -> WalFetchArguments:
    """Read the words after ``pitr wal fetch``.  Raises WrongUsage."""
    plan = environment.get(_PLAN_VARIABLE)
    is_standby = environment.get(_STANDBY_VARIABLE, "").lower() in _YES
    places: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--standby":
            is_standby = True
        elif word == "--plan":
            if not rest:
                raise WrongUsage("--plan needs a file")
            plan = rest.pop(0)
        elif word.startswith("--plan="):
            plan = word.removeprefix("--plan=")
        elif word.startswith("-"):
            raise WrongUsage(f"there is no option {word}")
        else:
            places.append(word)
    if len(places) != 2 or not plan:
        raise WrongUsage("usage: pitr wal fetch %f %p --plan FILE [--standby]")
    return WalFetchArguments(places[0], Path(places[1]), Path(plan), is_standby)


def run(words: Sequence[str]) -> int:
    """Deliver one file to PostgreSQL; return the exit code that it must see."""
    # The server ends its restore_command by SIGTERM and expects it to die of it (xlogarchive.c).
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rest = [word for word in words if word != "--json"]
    lines: list[str] = []
    code = _deliver(rest, lines)
    for line in lines:
        print_line(f"pitr wal fetch: {line}")
    if len(rest) < len(words) or os.environ.get(_JSON_VARIABLE, "").lower() in _YES:
        _write_object(code, lines)
    return code


def _deliver(words: Sequence[str], lines: list[str]) -> int:
    """Return the exit code, and put into ``lines`` what is to be told."""
    is_standby = "--standby" in words
    regions = _Regions()
    try:
        arguments = parse_arguments(words, os.environ)
        is_standby = arguments.is_standby
        outcome = fetch_wal(
            WalFetchRequest(
                arguments.name, arguments.destination, arguments.plan_file, arguments.is_standby, regions.open
            )
        )
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return EXIT_DOUBT
    except Exception as error:  # noqa: BLE001 — the top of the command; silence would be exit code 1
        # A standby is shut down by a code above 125, and never promotes by itself: doubt is 1 there.
        lines.append(str(error))
        return EXIT_OUTSIDE_PATH if is_standby else EXIT_DOUBT
    lines += [f"{arguments.name}: {line}" for line in regions.fault_lines()]
    if outcome.message is not None:
        lines.append(outcome.message)
    return outcome.exit_code


def _write_object(code: int, lines: Sequence[str]) -> None:
    """Write the object that every command writes with ``--json``; it never changes the exit code."""
    import json

    warnings, message = (lines[:-1], "".join(lines[-1:])) if code else (lines, "")
    error = {"code": None, "exit": code, "message": message, "why": None, "next": None} if code else None
    answer = {"schema": "pitr/1", "command": "wal fetch", "ok": code == 0}
    answer |= {"data": {"exit": code}, "warnings": warnings, "error": error}
    # Past Python's buffers: what they could not write when it ends would make the exit code 120.
    with suppress(OSError):
        os.write(1, json.dumps(answer).encode() + b"\n")


def print_line(text: str) -> None:
    """Write to the server's log, which is what our standard error is."""
    sys.stderr.write(text + "\n")


class _Regions:
    """Opens regions and keys as the plan names them: the slow way, when no restore feeds the spool."""

    def __init__(self) -> None:
        self._opened: OpenedWal | None = None

    def open(self, header: WalPlanHeader) -> ReadWal:
        from cli.wiring import open_wal_reader

        self._opened = open_wal_reader(header)
        return self._opened.read

    def fault_lines(self) -> list[str]:
        """Return what the reads fell back past; nothing where no region was asked."""
        if self._opened is None:
            return []
        from cli.copy_faults import fault_lines

        return fault_lines(self._opened.faults())
