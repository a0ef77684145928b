"""Run this program in a process of its own, for the timetable: it cannot block or kill archiving."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from cli.ends_with import VARIABLE
from pitr.errors import PitrError

POLL_S: Final = 0.5
END_S: Final = 120.0
"""Told to end it cleans up first."""
_OUTPUT_BYTES_MAX: Final = 16 << 20


class Turn:
    """Lets runs go one after the other, though the timetable has a thread for each task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, what: str, cancel: threading.Event) -> Iterator[None]:
        """Wait for the turn, and have it.  Raises PitrError if ``cancel`` is set before."""
        while not self._lock.acquire(timeout=POLL_S):
            if cancel.is_set():
                raise PitrError(f"{what} was cancelled while another one ran")
        try:
            yield
        finally:
            self._lock.release()


def run_own(
    command: Sequence[str], config: Path, words: Sequence[str], deadline_s: float, cancel: threading.Event
) -> tuple[int, Mapping[str, Any]]:
    """Return its exit code and what it says as JSON, empty if that is nothing.

    It is ended when ``cancel`` is set or its time is up; and it ends itself when this process is killed, or
    the next one would run it a second time beside.
    """
    before = ("-c", str(config), "--json", "--progress", "none")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said, _pipe() as ends:
        process = subprocess.Popen(
            [*command, *before, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=said,
            pass_fds=(ends,),
            env={**os.environ, VARIABLE: str(ends)},
        )
        deadline = time.monotonic() + deadline_s
        try:
            while process.poll() is None and time.monotonic() < deadline and not cancel.wait(POLL_S):
                pass
        finally:
            _end(process)
        return process.returncode, _read(output)


@contextmanager
def _pipe() -> Iterator[int]:
    """Give the end of a pipe that reads as ended once this process is no more."""
    ends, mine = os.pipe()
    try:
        yield ends
    finally:
        os.close(ends)
        os.close(mine)


def failure_words(exit_code: int, answer: Mapping[str, Any]) -> str:
    """Return why it failed, in one line."""
    error = answer.get("error") or {}
    text = "; ".join(filter(None, (error.get("message"), error.get("why"))))
    return text or f"exit code {exit_code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it clean up; kill it if it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)


def _read(output: IO[bytes]) -> Mapping[str, Any]:
    output.seek(0)
    try:
        found = json.loads(output.read(_OUTPUT_BYTES_MAX))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
