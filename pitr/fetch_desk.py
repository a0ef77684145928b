"""The desk between ``restore_command`` and the restore that feeds it: three folders of small files.

Whoever fetches lays a file with the wanted name into ``ask``; the feeder then puts the segment into
``spool``, or a note into ``answers``: ``1`` outside the plan, ``200`` doubt, and why.
Folders and no socket, because a shell can use them: PostgreSQL runs ``restore_command`` as its own user, who
may be unable to start the Python that the restore runs in (root's home is closed to it).
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SPOOL_NAME = "spool"
ASK_NAME = "ask"
ANSWERS_NAME = "answers"
FEEDER_NAME = "feeder.pid"
SCRIPT_NAME = "fetch.sh"
# Longer than the feeder's own patience with the store, or its reason would never be heard.
ANSWER_TIMEOUT_S = 900.0
_POLL_S = 0.02
_SHELL_POLL_S = 0.05
_NOTE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Note:
    """An answer other than a file: ``restore_command``'s exit code, and why."""

    exit_code: int
    reason: str

    def encode(self) -> bytes:
        """Return one line, the code first, so that a shell reads it."""
        return f"{self.exit_code} {' '.join(self.reason.split())}\n".encode("utf-8", "replace")[
            :_NOTE_BYTES_MAX
        ]

    @classmethod
    def decode(cls, line: bytes) -> Note:
        """Read a note; one that cannot be read is doubt."""
        code, _, reason = line.decode("utf-8", "replace").strip().partition(" ")
        return cls(1 if code == "1" else 200, reason or "the restore's note cannot be read")


@dataclass(frozen=True, slots=True)
class Desk:
    """The folders of one restore, in its work directory."""

    folder: Path

    @property
    def spool(self) -> Path:
        return self.folder / SPOOL_NAME

    @property
    def ask(self) -> Path:
        return self.folder / ASK_NAME

    @property
    def answers(self) -> Path:
        return self.folder / ANSWERS_NAME

    @property
    def feeder(self) -> Path:
        return self.folder / FEEDER_NAME

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT_NAME

    def is_fed(self) -> bool:
        """Tell whether the process that feeds the spool is there."""
        try:
            pid = int(self.feeder.read_text())
        except (OSError, ValueError):
            return False
        return Path(f"/proc/{pid}").exists()

    def put_note(self, name: str, note: Note) -> None:
        """Answer a question with a note, whole or not at all."""
        staged = self.folder / f".{ANSWERS_NAME}.{name}"
        staged.write_bytes(note.encode())
        staged.chmod(0o644)
        staged.replace(self.answers / name)


def wait_for_answer(
    desk: Desk,
    name: str,
    take: Callable[[], bool],
    *,
    timeout_s: float = ANSWER_TIMEOUT_S,
    monotonic: Callable[[], float] = time.monotonic,
) -> Note | None:
    """Ask for ``name`` and return once ``take`` has got it (then a note of code 0) or a note is there.

    None if nobody feeds the spool.
    """
    if not desk.is_fed():
        return None
    (desk.answers / name).unlink(missing_ok=True)
    (desk.ask / name).touch()
    deadline = monotonic() + timeout_s
    while monotonic() < deadline:
        if (desk.spool / name).exists():
            # First: a question that is still there when the file is gone asks for it once more.
            (desk.ask / name).unlink(missing_ok=True)
            if take():
                return Note(0, "")
        with contextlib.suppress(FileNotFoundError):
            note = Note.decode((desk.answers / name).read_bytes())
            (desk.answers / name).unlink()
            return note
        if not desk.is_fed():
            return None
        time.sleep(_POLL_S)
    return Note(200, f"the restore gave no answer in {timeout_s:g} s")


def fetch_script(desk: Desk, plan_file: Path, fetch_command: Sequence[str]) -> str:
    """Return the shell script that ``restore_command`` reads, with NAME and DESTINATION as ``$1`` and ``$2``.

    It moves what is in the spool, else asks, else (nobody feeds the spool) becomes ``fetch_command``.
    A file that lies there costs a shell and one ``mv``, nothing is synced: the server syncs what it gets.

    Whatever goes wrong in it ends above 125, also what shells end by themselves with 1 or 2 (measured with
    dash, bash and busybox): a redirection of ``:`` that fails, a script that is cut.  Therefore the trap.
    """
    folder = shlex.quote(str(desk.folder))
    alone = "exit"
    if fetch_command:
        words = " ".join(shlex.quote(word) for word in fetch_command)
        # exec: the server's SIGTERM must end the program, and its exit code must reach the server.
        alone = f'exec {words} "$name" "$place" --plan {shlex.quote(str(plan_file))}'
    turns = round(ANSWER_TIMEOUT_S / _SHELL_POLL_S)
    return f"""#!/bin/sh
# Written by `pitr restore`: gives recovery the WAL of one plan.
# Exit codes: 0 here it is, 1 the plan leaves it out, 200 doubt (PostgreSQL stops recovery above 125).
code=200
trap 'exit $code' EXIT
# The server ends its restore_command by SIGTERM and expects it to die of it; bash would run the trap above.
trap 'trap - EXIT TERM; kill -TERM $$' TERM
name=$1 place=$2 folder={folder}
case $name in ''|.*|*.part|*[!0-9A-Za-z.]*) exit;; esac
case $place in '') exit;; esac
cd "$folder" 2>/dev/null || {{ echo "pitr restore: $folder is gone" >&2; exit; }}
case $place in /*) ;; *) place=$OLDPWD/$place;; esac
take() {{
    [ -f "{SPOOL_NAME}/$name" ] || return 0
    # First: a question that is still there when the file is gone asks for it once more.
    if [ -e "{ASK_NAME}/$name" ]; then rm -f "{ASK_NAME}/$name" || exit; fi
    # What stood there could be a directory, or another link to the same file: mv would leave the spool's.
    if [ -e "$place" ]; then rm -f "$place" || exit; fi
    mv -f "{SPOOL_NAME}/$name" "$place" && [ -f "$place" ] && code=0
    exit
}}
take
is_fed() {{ read -r pid < {FEEDER_NAME} && [ -d "/proc/$pid" ]; }} 2>/dev/null
if is_fed; then
    rm -f "{ANSWERS_NAME}/$name"
    : > "{ASK_NAME}/$name" || exit
    turn=0
    while is_fed; do
        take
        if [ -f "{ANSWERS_NAME}/$name" ]; then
            read -r said reason < "{ANSWERS_NAME}/$name"
            rm -f "{ANSWERS_NAME}/$name"
            echo "pitr restore: $name: $reason" >&2
            [ "$said" = 1 ] && code=1
            exit
        fi
        turn=$((turn + 1))
        [ "$turn" -gt {turns} ] && {{ echo "pitr restore: $name: no answer" >&2; exit; }}
        sleep {_SHELL_POLL_S} 2>/dev/null || sleep 1 || exit
    done
fi
cd "$OLDPWD" || exit
{alone}
"""


def script_command(script: Path) -> str:
    """Return the ``restore_command`` that runs the script.  %f and %p are PostgreSQL's; other % are doubled.

    The server starts a shell for the command, which reads the script itself: a second one would cost as much
    again.  A script that is gone, cannot be read or is empty must not end recovery: a shell that cannot open
    it ends with 2, one that reads nothing with 0, and the server takes both for "no such file".
    """
    quoted = shlex.quote(str(script)).replace("%", "%%")
    return f"[ -r {quoted} ] && [ -s {quoted} ] && set -- %f %p && . {quoted}; exit 200"
