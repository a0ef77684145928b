"""examples/events/README.md is run from its first command to its last, as it stands."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from fix_cli import CHECKOUT, PitrProgram
from fix_kafka import MakeKafka
from fix_postgres import PostgresFactory

from pitr.postgres.server_user import ServerUser, as_user, hand_over

EXAMPLE = CHECKOUT / "examples" / "events"
TIMEOUT_S = 420.0
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _script() -> str:
    parts = ["set -eu", "if (set -o pipefail) 2> /dev/null; then set -o pipefail; fi"]
    for number, block in enumerate(_BLOCK.findall((EXAMPLE / "README.md").read_text()), 1):
        parts += [f"echo '--- block {number}' >&2", block]
    return "\n".join(parts)


@pytest.mark.slow
def test_the_ransomware_story_can_be_followed(
    postgres_factory: PostgresFactory,
    make_kafka: MakeKafka,
    server_tmp_path: Path,
    server_user_or_none: ServerUser | None,
) -> None:
    server = postgres_factory(17)
    node = make_kafka().start()
    node.create_topic("orders", 1, retention_ms="-1")
    program = PitrProgram(server_tmp_path)
    programs, work = server_tmp_path / "bin", server_tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    for name, words in {"pitr": program.words(), "python3": [sys.executable]}.items():
        shim = programs / name
        shim.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        shim.chmod(0o755)
    hand_over(server_tmp_path, server_user_or_none)
    prefix, options = as_user(server_user_or_none)
    environment = program.env() | {
        "PATH": f"{programs}:{server.instance.installation.bin_dir}:{os.environ['PATH']}",
        "PGHOST": str(server.instance.socket_dir),
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
        "KAFKA": node.bootstrap,
        "EXAMPLE": str(EXAMPLE),
    }
    output, pid_file = server_tmp_path / "output", work / "restored" / "postmaster.pid"
    with output.open("w") as stream:
        shell = subprocess.Popen(
            [*prefix, "sh", "-c", _script()],
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
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            if pid_file.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
    told = output.read_text()
    assert shell.returncode == 0, told
    assert "reconciled 1 partitions" in told
