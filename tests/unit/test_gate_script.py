"""The archive_command gate under every shell that a database host may have as /bin/sh."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_shells import shell_params, shell_words

from pitr.gate_folder import ACKED_MAX, ASIDE_MAX, GateFolder
from pitr.gate_script import AHEAD_MAX, HANDED_NAME, archive_command, gate_script

NAME = "0000000100000000000000A1"
GOOD_NAMES = (NAME, f"{NAME}.partial", "0000000B.history", f"{NAME}.00000028.backup")
BAD_NAMES = ("", "../x", "0000000100000000000000a1", f"{NAME}.tmp", "0000000100000000000000A", "x.history")


class Desk:
    """A gate's folder and a data directory, both with spaces in their names."""

    def __init__(self, root: Path, shell: list[str]) -> None:
        self.shell = shell
        self.data = root / "data dir"
        (self.data / "pg_wal" / "archive_status").mkdir(parents=True)
        self.folder = GateFolder(root / "the gate's 100% folder")
        self.folder.begin()
        self.use(wait_s=0.4, grace_s=0.2)

    def use(self, *, wait_s: float, grace_s: float) -> None:
        (self.folder.root / "gate").write_text(gate_script(wait_s=wait_s, grace_s=grace_s))

    def write(self, name: str, content: bytes = b"wal", *, is_ready: bool = False) -> str:
        path = self.data / "pg_wal" / name
        path.write_bytes(content)
        # As a server that wrote it a while ago.
        os.utime(path, (time.time() - 60, time.time() - 60))
        if is_ready:
            (self.data / "pg_wal" / "archive_status" / f"{name}.ready").touch()
        return f"pg_wal/{name}"

    def start(self, name: str, path: str) -> subprocess.Popen[str]:
        words = [*self.shell, str(self.folder.root / "gate"), name, path]
        return subprocess.Popen(
            words, cwd=self.data, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, name: str, path: str) -> tuple[int, str]:
        process = self.start(name, path)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    @property
    def todo(self) -> list[str]:
        return sorted(path.name for path in (self.folder.root / HANDED_NAME).iterdir())


@pytest.fixture(params=shell_params())
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    return Desk(tmp_path, shell_words(request.param))


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_file_that_is_durable_is_acknowledged_and_not_copied(desk: Desk, name: str) -> None:
    path = desk.write(name)
    desk.folder.acknowledge(name)
    assert desk.run(name, path) == (0, "")
    assert not desk.todo


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_file_that_is_not_durable_is_copied_and_not_acknowledged(desk: Desk, name: str) -> None:
    path = desk.write(name, b"x" * 3_000_000)
    code, said = desk.run(name, path)
    assert (code, said.count("\n")) == (1, 1)
    assert "not durable yet" in said
    assert desk.todo == [name]
    assert (desk.folder.root / HANDED_NAME / name).read_bytes() == b"x" * 3_000_000


def test_it_waits_until_the_file_is_durable(desk: Desk) -> None:
    desk.use(wait_s=30.0, grace_s=0.1)
    process = desk.start(NAME, desk.write(NAME))
    while not desk.todo:
        threading.Event().wait(0.01)
    assert process.poll() is None
    desk.folder.acknowledge(NAME)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 0


def test_a_file_is_not_copied_while_the_stream_may_bring_it(desk: Desk) -> None:
    desk.use(wait_s=0.4, grace_s=5.0)
    desk.folder.streams(is_streaming=True)
    assert desk.run(NAME, desk.write(NAME))[0] == 1
    assert not desk.todo
    desk.folder.streams(is_streaming=False)
    assert desk.run(NAME, desk.write(NAME))[0] == 1
    assert desk.todo == [NAME]


def test_what_was_written_after_the_acknowledgement_is_not_acknowledged(desk: Desk) -> None:
    path = desk.write(NAME)
    desk.folder.acknowledge(NAME)
    later = time.time() + 5
    os.utime(desk.data / path, (later, later))
    assert desk.run(NAME, path)[0] == 1
    assert desk.todo == [NAME]


def test_a_clock_that_was_set_back_holds_nothing_up(desk: Desk) -> None:
    path = desk.write(NAME)
    before = time.time() + 3600
    os.utime(desk.data / path, (before, before))
    assert desk.run(NAME, path)[0] == 1
    [copy] = desk.folder.handed()
    desk.folder.refuse(NAME, "not now", copy=copy)
    assert "refused: not now" in desk.run(NAME, path)[1]
    desk.folder.acknowledge(NAME, copy=copy)
    assert desk.run(NAME, path) == (0, "")


def test_a_copy_is_made_once_and_again_when_the_file_has_changed(desk: Desk) -> None:
    path = desk.write(NAME, b"one")
    desk.run(NAME, path)
    copied = desk.folder.root / HANDED_NAME / NAME
    before = copied.stat()
    desk.run(NAME, path)
    assert copied.stat().st_ino == before.st_ino
    (desk.data / path).write_bytes(b"two")
    os.utime(desk.data / path, (time.time() + 5, time.time() + 5))
    desk.run(NAME, path)
    assert copied.read_bytes() == b"two"


def test_a_copy_stays_what_it_was_when_the_server_recycles_the_file(desk: Desk) -> None:
    path = desk.write(NAME, b"old")
    desk.run(NAME, path)
    with (desk.data / path).open("r+b") as same_inode:
        same_inode.write(b"new")
    assert (desk.folder.root / HANDED_NAME / NAME).read_bytes() == b"old"
    assert (desk.folder.root / HANDED_NAME / NAME).stat().st_nlink == 1


def test_files_that_wait_behind_it_are_copied_with_it(desk: Desk) -> None:
    names = [f"00000001000000000000{number:04X}" for number in range(0xFC, 0x100)]
    names += [f"000000010000000100000{number:03X}" for number in range(12)]
    for name in names:
        desk.write(name, is_ready=True)
    desk.run(names[0], f"pg_wal/{names[0]}")
    assert desk.todo == names[: AHEAD_MAX + 1]


def test_a_refusal_is_told_at_once_in_one_line(desk: Desk) -> None:
    path = desk.write(NAME)
    desk.use(wait_s=60.0, grace_s=0.1)
    desk.folder.refuse(NAME, "other bytes are\narchived under $(touch x) `this` name")
    code, said = desk.run(NAME, path)
    assert (code, said.count("\n")) == (1, 1)
    assert "refused: other bytes are archived under $(touch x) `this` name" in said
    assert not (desk.data / "x").exists()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_postgres_does_not_ask_for_is_refused(desk: Desk, name: str) -> None:
    code, said = desk.run(name, desk.write("0000000100000000000000FF"))
    assert (code, said.count("\n")) == (1, 1)
    assert not desk.todo


def test_trouble_is_status_1_and_one_line(desk: Desk) -> None:
    path = desk.write(NAME)
    todo = desk.folder.root / HANDED_NAME
    troubles: list[Callable[[], object]] = [
        lambda: (desk.data / path).rename(desk.data / "elsewhere"),
        lambda: (desk.write(NAME), todo.rmdir()),
        lambda: todo.write_text("no folder"),
    ]
    for trouble in troubles:
        trouble()
        code, said = desk.run(NAME, path)
        assert (code, said.count("\n")) == (1, 1), said
    assert desk.run(NAME, "")[0] == 1


def test_a_full_disk_leaves_nothing_half(desk: Desk) -> None:
    path = desk.write(NAME, b"x" * 3_000_000)
    words = "ulimit -f 2048; trap '' XFSZ; exec " + " ".join(desk.shell) + ' "$@"'
    done = subprocess.run(
        ["sh", "-c", words, "-", str(desk.folder.root / "gate"), NAME, path],
        cwd=desk.data, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot be copied" in done.stderr
    assert not desk.todo


def test_a_daemon_that_is_gone_is_told_soon(desk: Desk) -> None:
    desk.use(wait_s=600.0, grace_s=0.1)
    desk.folder.end()
    code, said = desk.run(NAME, desk.write(NAME))
    assert code == 1
    assert "no daemon works on" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_a_kill_at_any_moment_leaves_no_half_file_under_a_whole_ones_name(desk: Desk, number: int) -> None:
    desk.use(wait_s=30.0, grace_s=0.1)
    content = os.urandom(48 << 20)
    path = desk.write(NAME, content)
    for step in range(6):
        process = desk.start(NAME, path)
        while not desk.todo:
            threading.Event().wait(0.001)
        threading.Event().wait(0.005 * step)
        os.killpg(process.pid, number)
        process.communicate(timeout=20)
        assert process.returncode in {1, -number}
        copied = desk.folder.root / HANDED_NAME / NAME
        if copied.exists():
            assert copied.read_bytes() == content
        for path_left in (desk.folder.root / HANDED_NAME).iterdir():
            path_left.unlink()


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    folder = GateFolder(tmp_path / "gate")
    folder.begin()
    for number in range(ACKED_MAX + 20):
        folder.acknowledge(f"00000001{number:016X}")
    left = sorted(path.name for path in (folder.root / "acked").iterdir())
    assert len(left) == ACKED_MAX
    assert left[0] == f"00000001{20:016X}"
    kept = []
    for number in range(ASIDE_MAX + 2):
        (folder.root / HANDED_NAME / NAME).write_bytes(bytes([number]))
        [file] = folder.handed()
        kept.append(folder.keep_aside(file, bytes([number]) * 32))
    assert kept == [True] * ASIDE_MAX + [False] * 2
    assert not folder.handed()
    old = folder.root / HANDED_NAME / f".{NAME}.77"
    old.touch()
    os.utime(old, (1, 1))
    (folder.root / HANDED_NAME / f".{NAME}.78").touch()
    assert not folder.handed()
    assert [path.name for path in (folder.root / HANDED_NAME).iterdir()] == [f".{NAME}.78"]


def test_a_new_daemon_forgets_what_an_earlier_one_acknowledged(tmp_path: Path) -> None:
    folder = GateFolder(tmp_path / "gate")
    folder.begin()
    folder.acknowledge(NAME)
    folder.refuse(NAME, "no")
    GateFolder(tmp_path / "gate").begin()
    assert not list((tmp_path / "gate" / "acked").iterdir())
    assert not list((tmp_path / "gate" / "refused").iterdir())


def test_a_link_in_the_place_of_a_copy_is_not_followed(tmp_path: Path) -> None:
    folder = GateFolder(tmp_path / "gate")
    folder.begin()
    (tmp_path / "secret").write_text("secret")
    (folder.root / HANDED_NAME / NAME).symlink_to(tmp_path / "secret")
    assert not folder.handed()


def test_the_setting_quotes_what_the_shell_and_postgres_would_take_otherwise() -> None:
    assert archive_command(Path("/var/lib/pitr/gate")) == "/var/lib/pitr/gate/gate %f %p"
    assert archive_command(Path("/a b/50%")) == "'/a b/50%%/gate' %f %p"


def test_only_whole_segments_wait_for_the_stream(desk: Desk) -> None:
    desk.use(wait_s=0.4, grace_s=60.0)
    desk.folder.streams(is_streaming=True)
    for name in GOOD_NAMES:
        desk.run(name, desk.write(name))
    assert desk.todo == sorted(set(GOOD_NAMES) - {NAME})
