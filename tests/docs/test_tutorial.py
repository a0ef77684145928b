"""docs/tutorial.md is run from its first command to its last, as it stands, against a throw-away cluster."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

from fix_cli import PitrProgram, wait_until
from fix_postgres import PostgresFactory

from pitr.postgres.server_user import ServerUser, as_user, hand_over

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
TIMEOUT_S = 240.0
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(text: str) -> str:
    """Return all ``sh`` blocks as one script, which says where it is and ends with the first mistake."""
    # Not every sh has pipefail, and nobody's page should need bash.
    parts = ["set -eu", "if (set -o pipefail) 2> /dev/null; then set -o pipefail; fi"]
    for number, block in enumerate(_BLOCK.findall(text), 1):
        parts += [f"echo '--- block {number}' >&2", block]
    return "\n".join(parts)


def test_the_tutorial_can_be_followed(
    postgres_factory: PostgresFactory, server_tmp_path: Path, server_user_or_none: ServerUser | None
) -> None:
    server = postgres_factory(17)
    program = PitrProgram(server_tmp_path)
    programs = server_tmp_path / "bin"
    programs.mkdir()
    # The installed command's name for this checkout.
    shim = programs / "pitr"
    shim.write_text(f'#!/bin/sh\nexec {shlex.join(program.words())} "$@"\n')
    shim.chmod(0o755)
    work = server_tmp_path / "work"
    work.mkdir()
    # The page is followed as PostgreSQL's user, as it says.
    hand_over(server_tmp_path, server_user_or_none)
    prefix, options = as_user(server_user_or_none)
    environment = program.env() | {
        "PATH": f"{programs}:{server.instance.installation.bin_dir}:{os.environ['PATH']}",
        "PGHOST": str(server.instance.socket_dir),
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
    }
    output = server_tmp_path / "output"
    pid_file = work / "restored" / "postmaster.pid"
    with output.open("w") as stream:
        shell = subprocess.Popen(
            [*prefix, "sh", "-c", script_of(TUTORIAL.read_text(encoding="utf-8"))],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            **options,
        )
        try:
            shell.wait(TIMEOUT_S)
        finally:
            # The daemon that the page starts is in the shell's process group; the restored server is not.
            _end(lambda: os.killpg(shell.pid, signal.SIGKILL))
            shell.wait()
            if shell.returncode and pid_file.exists():
                _end(lambda: os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT))
    told = output.read_text()
    assert shell.returncode == 0, told
    assert "all WAL received is durable" in told
    wait_until(lambda: not pid_file.exists(), "the restored server has stopped", timeout_s=30)
    assert sorted(path.name for path in work.iterdir() if path.is_dir()) == ["restored", "restored.pitr"]


def _end(kill: object) -> None:
    assert callable(kill)
    try:
        kill()
    except ProcessLookupError:
        return
