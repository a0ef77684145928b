"""A data directory's postmaster is recognised, and a stale postmaster.pid names nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pitr.postgres.processes import descendants, is_alive, postmaster_pid


@pytest.mark.parametrize("content", ["", "\n", "not a number\n", "999999999\n"])
def test_a_postmaster_pid_that_names_no_process_means_no_server(tmp_path: Path, content: str) -> None:
    (tmp_path / "postmaster.pid").write_text(content)
    assert postmaster_pid(tmp_path) is None


def test_a_stale_postmaster_pid_that_names_somebody_elses_process_means_no_server(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n")
    assert postmaster_pid(tmp_path) is None


@pytest.mark.parametrize("sign", ["", "-"])
def test_a_process_that_works_in_the_data_directory_is_its_server(tmp_path: Path, sign: str) -> None:
    """A single-user server writes its id negated."""
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as process:
        (tmp_path / "postmaster.pid").write_text(f"{sign}{process.pid}\n")
        assert postmaster_pid(tmp_path) == process.pid
        assert process.pid in descendants(os.getpid())
        process.kill()
        # Ended, and not yet reaped by us.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(process.pid)
        assert postmaster_pid(tmp_path) is None


def test_a_directory_that_is_not_there_has_no_server(tmp_path: Path) -> None:
    assert postmaster_pid(tmp_path / "absent") is None
