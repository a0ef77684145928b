"""Which Go builds the S3 server: the one on the path if it is new enough, else the wheel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.demo_s3 import find_program
from cli.demo_versitygw import VERSION, go_on_path, versitygw


def _program(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "is_taken"),
    [("go1.25", True), ("go1.27.3", True), ("go1.24.9", False), ("devel", False)],
)
def test_a_go_that_is_too_old_is_left_for_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_taken: bool
) -> None:
    go = _program(tmp_path, "go", version)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert go_on_path() == (go if is_taken else None)


def test_without_go_the_wheel_builds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert go_on_path() is None


def test_the_demo_takes_what_is_named_then_what_is_on_the_path_then_what_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("bin", "pitr-tests"):
        (tmp_path / folder).mkdir()
    named = _program(tmp_path, "mine", "")
    found = _program(tmp_path / "bin", "versitygw", "")
    built = _program(tmp_path / "pitr-tests", f"versitygw-{VERSION}", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PITR_VERSITYGW", str(named))
    assert find_program() == named
    monkeypatch.delenv("PITR_VERSITYGW")
    assert find_program() == found
    found.unlink()
    # The tests take no other version than theirs.
    assert find_program() == versitygw() == built
