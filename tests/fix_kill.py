"""A process that counts its steps and kills itself at the Nth: ``SIGKILL``, as a power cut does.

Steps are counted where a part is given from outside (the store, the progress, the wait for WAL), and where
Python itself tells of each change of files: by an audit hook, so no code of ours knows of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.store import CopyCheck, ObjectInfo, ObjectStore

CHILD = Path(__file__).with_name("kill_child.py")
CHILD_TIMEOUT_S = 180.0
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Which argument of an audit event is the path that changes, and which the descriptor it is relative to.
_CHANGES: dict[str, tuple[int, int | None]] = {
    "os.mkdir": (0, 2),
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.symlink": (1, 2),
    "os.link": (1, 3),
    "os.chmod": (0, 2),
    "os.chown": (0, 3),
    "os.truncate": (0, None),
}


@dataclass
class KillCount:
    """Counts what passes while it is ``is_armed``, and ends the process at step ``kill_at`` (0: never).

    Or at the first step in whose text the pattern ``kill_on`` is found.  Of the steps with the pattern
    ``bulk`` only each ``bulk_every``-th counts: they are hundreds, and alike.
    """

    kill_at: int
    kill_on: str = ""
    bulk: str = ""
    bulk_every: int = 1
    steps: int = 0
    is_armed: bool = False
    _bulk_seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def met(self, what: str) -> None:
        with self._lock:
            if not self.is_armed:
                return
            is_meant = bool(self.kill_on) and re.search(self.kill_on, what) is not None
            if not is_meant and self.bulk and re.search(self.bulk, what):
                self._bulk_seen += 1
                if self._bulk_seen % self.bulk_every:
                    return
            self.steps += 1
            if is_meant or self.steps == self.kill_at:
                os.write(2, f"killed at step {self.steps}: {what}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    def watch_files(self, *folders: Path) -> None:
        """Count each change of a file below ``folders``, before it is made, and each process that is started.

        There is no way back: it ends with the process.
        """
        tops = tuple(f"{folder}/" for folder in folders)

        def look(event: str, args: tuple[Any, ...]) -> None:
            if event == "subprocess.Popen":
                words = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
                self.met(f"start {' '.join(map(os.fsdecode, words))}")
                return
            if event == "open":
                if not args[2] & _WRITES:
                    return
                path = _whole(args[0], None)
            elif event in _CHANGES:
                at, relative_to = _CHANGES[event]
                path = _whole(args[at], None if relative_to is None else args[relative_to])
            else:
                return
            if f"{path}/".startswith(tops):
                self.met(f"{event} {path}")

        sys.addaudithook(look)


def _whole(path: Any, folder_fd: int | None) -> str:
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    text = os.fsdecode(path)
    if text.startswith("/") or folder_fd is None or folder_fd < 0:
        return text
    return f"{Path(f'/proc/self/fd/{folder_fd}').readlink()}/{text}"


@dataclass
class FatalStore:
    """An ``ObjectStore`` whose calls are steps, before each acts and after it."""

    inner: ObjectStore
    count: KillCount

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        self.count.met(f"before put {key}")
        self.inner.put(key, body, sha256=sha256, after_all=after_all)
        self.count.met(f"after put {key}")

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        self.count.met(f"before get {key}")
        body = self.inner.get(key, check=check)
        self.count.met(f"after get {key}")
        return body

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        self.count.met(f"before get {key} at {start}")
        body = self.inner.get_range(key, start, length, check=check)
        self.count.met(f"after get {key} at {start}")
        return body

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        self.count.met(f"before list {prefix}")
        yield from self.inner.list_objects(prefix, start_after=start_after)
        self.count.met(f"after list {prefix}")

    def delete(self, key: str) -> None:
        self.count.met(f"before delete {key}")
        self.inner.delete(key)
        self.count.met(f"after delete {key}")


@dataclass(frozen=True)
class Fate:
    """How a child ended: killed at ``step``, or with ``steps`` counted."""

    was_killed: bool
    steps: int
    step: str


def run_child(
    verb: str,
    fields: dict[str, object],
    kill_at: int,
    *,
    answer: Callable[[str], str] = lambda _line: "",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Fate:
    """Run a verb of ``kill_child.py``; ``answer`` is asked what the child asks on its output, by the line.

    Fails unless the child was killed at its step or ended well.
    """
    words: Sequence[str] = [sys.executable, str(CHILD), verb, str(kill_at), json.dumps(fields)]
    running = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=env,
    )
    assert running.stdin is not None
    assert running.stdout is not None
    stderr = running.stderr
    assert stderr is not None
    timer = threading.Timer(CHILD_TIMEOUT_S, running.kill)
    timer.start()
    said: list[str] = []
    errors: list[str] = []
    # A child that says much must not wait for us.
    reader = threading.Thread(target=lambda: errors.append(stderr.read()))
    reader.start()
    steps = 0
    try:
        for line in running.stdout:
            said.append(line)
            if line.startswith("ask "):
                try:
                    running.stdin.write(f"{answer(line[4:].rstrip())}\n")
                    running.stdin.flush()
                except BrokenPipeError:
                    continue
            elif line.startswith("steps "):
                steps = int(line[6:])
        code = running.wait(CHILD_TIMEOUT_S)
    finally:
        timer.cancel()
        running.kill()
        running.wait(30)
        reader.join()
        for stream in (running.stdin, running.stdout, running.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                continue
    last = [line for line in "".join(errors).splitlines() if line.startswith("killed at step ")]
    if code == -signal.SIGKILL and last:
        return Fate(True, int(last[-1].split()[3].rstrip(":")), last[-1])
    assert code == 0, (
        f"{verb} with {kill_at} ended with {code}: {''.join(said)[-1000:]}{''.join(errors)[-3000:]}"
    )
    return Fate(False, steps, "")
