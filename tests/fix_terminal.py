"""``pitr`` on a terminal, as a person has it who is asked and answers."""

from __future__ import annotations

import os
import pty
import subprocess
from contextlib import suppress

from fix_cli import PitrProgram


def on_a_terminal(pitr: PitrProgram, words: list[object], answers: str) -> tuple[int, str]:
    """Run a command as a person does who types these lines; return its exit code and what was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        pitr.words(*words),
        cwd=pitr.folder,
        env={**pitr.env(), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        os.write(ours, answers.encode())
        # The read fails once the command has ended and nobody else has the terminal.
        with suppress(OSError):
            while part := os.read(ours, 65_536):
                shown += part
        return process.wait(60), shown.decode()
    finally:
        os.close(ours)
        process.kill()
        process.wait()
