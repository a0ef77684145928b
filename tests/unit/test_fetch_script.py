"""The shell script of ``restore_command`` by itself: what it serves; no accident ends it with 1 to 125."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_shells import shell_params, shell_words

from pitr.fetch_desk import Desk, fetch_script, script_command

NAME = "00000002000000010000002A"
CONTENT = b"a whole segment"
DOUBT = 200


@dataclass
class Script:
    """A script below a folder of the user's choice, and the server's data directory beside it."""

    desk: Desk
    data: Path
    shell: list[str]
    record: Path

    @property
    def place(self) -> Path:
        return self.data / "pg_wal" / "RECOVERYXLOG"

    def write(self, program: str | None = None) -> None:
        """Write the script; ``program`` is what it becomes where nobody feeds: it first notes that it ran."""
        command: list[str] = []
        if program is not None:
            noted = f"open({str(self.record)!r}, 'a').write('ran'); "
            command = [sys.executable, "-c", f"import os, sys; {noted}{program}"]
        plan = self.desk.folder / "wal-plan.json"
        self.desk.script.write_text(fetch_script(self.desk, plan, command))

    def put(self, name: str = NAME) -> Path:
        spooled = self.desk.spool / name
        spooled.write_bytes(CONTENT)
        return spooled

    def feed(self) -> None:
        """Stand for a feeder that lives and never answers."""
        self.desk.feeder.write_text(f"{os.getpid()}\n")

    def run(self, name: str = NAME, place: str = "pg_wal/RECOVERYXLOG", **environment: str) -> int:
        """Run the script as the server does: in the data directory, with a relative destination."""
        words = [*self.shell, str(self.desk.script), name, place]
        done = subprocess.run(
            words,
            cwd=self.data,
            env={**os.environ, **environment},
            check=False,
            timeout=30,
            stderr=subprocess.PIPE,
        )
        return done.returncode

    def run_as_setting(self) -> int:
        """Run the setting as the server does: its own letters replaced, by a shell."""
        command = script_command(self.desk.script)
        for letter, value in (("%f", NAME), ("%p", "pg_wal/RECOVERYXLOG"), ("%%", "%")):
            command = command.replace(letter, value)
        return subprocess.run(
            [*self.shell, "-c", command], cwd=self.data, check=False, timeout=30, stderr=subprocess.PIPE
        ).returncode


@pytest.fixture(params=shell_params())
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Script:
    folder = tmp_path / 'it\'s 10% "$mine" \\ .pitr'
    desk = Desk(folder)
    for part in (desk.spool, desk.ask, desk.answers, tmp_path / "data dir" / "pg_wal"):
        part.mkdir(parents=True)
    made = Script(desk, tmp_path / "data dir", shell_words(request.param), tmp_path / "record")
    made.write("sys.exit(200)")
    return made


def test_a_file_of_the_spool_is_moved_and_no_program_runs_but_mv(script: Script, tmp_path: Path) -> None:
    spooled = script.put()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mv").symlink_to(shutil.which("mv") or "")
    assert script.run(PATH=str(tmp_path / "bin")) == 0
    assert script.place.read_bytes() == CONTENT
    assert not spooled.exists()
    assert not script.record.exists()


def test_without_mv_a_file_of_the_spool_is_doubt(script: Script, tmp_path: Path) -> None:
    script.put()
    code = script.run(PATH=str(tmp_path / "nothing"))
    # busybox has its own, within the shell.
    assert code == 0 if script.place.exists() else code > 125


def test_an_absolute_destination_with_blanks_and_quotes_is_met(script: Script, tmp_path: Path) -> None:
    script.put()
    place = tmp_path / 'o\'ther "$place"'
    assert script.run(place=str(place)) == 0
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", f"../spool/{NAME}", f".{NAME}", f"{NAME}.part", "a b", "$(id)", "x;exit 1", "*", "a\nb"],
)
def test_a_name_that_the_server_never_asks_for_is_doubt(script: Script, name: str) -> None:
    script.put()
    script.put(f"{NAME}.part")
    script.put(f".{NAME}")
    script.feed()
    assert script.run(name) == DOUBT
    assert not script.place.exists()
    assert not script.record.exists()


def test_a_destination_that_is_no_file_is_doubt_and_the_spool_keeps_its_own(script: Script) -> None:
    spooled = script.put()
    script.place.mkdir()
    for place in ("", "pg_wal/RECOVERYXLOG", "pg_wal/gone/RECOVERYXLOG"):
        assert script.run(place=place) == DOUBT, place
    assert spooled.read_bytes() == CONTENT
    assert not list(script.place.iterdir())


def test_a_destination_that_is_another_link_to_the_spools_file_leaves_none_there(script: Script) -> None:
    # rename(2) does nothing then, and the server would go on to overwrite what the spool still has.
    spooled = script.put()
    script.place.hardlink_to(spooled)
    assert script.run() == 0
    assert not spooled.exists()
    assert script.place.read_bytes() == CONTENT


def test_a_question_that_still_lies_there_is_withdrawn_before_the_file_is_taken(script: Script) -> None:
    script.put()
    (script.desk.ask / NAME).touch()
    assert script.run() == 0
    assert not list(script.desk.ask.iterdir())


def test_a_question_that_cannot_be_asked_is_doubt(script: Script) -> None:
    # A shell ends with 1 or 2 by itself when a redirection of ":" fails; so it is on a full disk.
    script.feed()
    script.desk.ask.rmdir()
    assert script.run() == DOUBT
    assert not script.record.exists()


def test_a_note_says_one_or_doubt(script: Script) -> None:
    for note, code in (
        ("1 outside", 1),
        ("200 a hole", DOUBT),
        ("", DOUBT),
        ("11 x", DOUBT),
        ("0 fine", DOUBT),
    ):
        # Answered as soon as it is asked: a question in the way of the note's removal stands for the wait.
        script.feed()
        waiting = subprocess.Popen(
            [*script.shell, str(script.desk.script), NAME, "pg_wal/RECOVERYXLOG"],
            cwd=script.data,
            stderr=subprocess.DEVNULL,
        )
        while not list(script.desk.ask.iterdir()):
            assert waiting.poll() is None
        staged = script.desk.folder / "note"
        staged.write_text(f"{note}\n")
        staged.replace(script.desk.answers / NAME)
        assert waiting.wait(timeout=20) == code, note
        for question in script.desk.ask.iterdir():
            question.unlink()


def test_a_waiting_script_dies_of_the_servers_sigterm(script: Script) -> None:
    script.feed()
    words = [*script.shell, str(script.desk.script), NAME, "pg_wal/RECOVERYXLOG"]
    waiting = subprocess.Popen(words, cwd=script.data, start_new_session=True)
    while not list(script.desk.ask.iterdir()):
        assert waiting.poll() is None
    os.killpg(waiting.pid, signal.SIGTERM)
    assert waiting.wait(timeout=20) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("program", "code"), [("sys.exit(0)", 0), ("sys.exit(1)", 1), ("sys.exit(200)", 200)]
)
def test_where_nobody_feeds_the_programs_exit_code_is_handed_through(
    script: Script, program: str, code: int
) -> None:
    script.write(program)
    assert script.run() == code
    assert script.record.read_text() == "ran"


def test_a_program_that_is_killed_or_missing_never_ends_with_one(script: Script) -> None:
    for number in (9, 15, 11):
        script.write(f"os.kill(os.getpid(), {number})")
        # By exec, so the server sees the signal itself.
        assert script.run() == -number
    script.desk.script.write_text(fetch_script(script.desk, Path("plan"), ["/no/such/program"]))
    assert script.run() > 125
    script.write(None)
    assert script.run() == DOUBT


def test_the_folder_that_is_gone_is_doubt(script: Script, tmp_path: Path) -> None:
    moved = tmp_path / "moved.sh"
    script.desk.script.rename(moved)
    shutil.rmtree(script.desk.folder)
    done = subprocess.run(
        [*script.shell, str(moved), NAME, "x"], cwd=script.data, check=False, stderr=subprocess.PIPE
    )
    assert done.returncode == DOUBT


def test_a_script_that_is_cut_after_its_trap_is_doubt(script: Script) -> None:
    text = script.desk.script.read_text()
    begin, end = text.index("name=$1"), text.index("exec ")
    for cut in range(begin, end, 61):
        script.desk.script.write_text(text[:cut])
        assert script.run() == DOUBT, text[:cut][-40:]


def test_the_setting_runs_the_script_and_a_script_that_is_none_is_doubt(script: Script) -> None:
    script.put()
    assert script.run_as_setting() == 0
    assert script.place.read_bytes() == CONTENT
    # What the program says, and what kills it, reaches the server.
    for program, code in (("sys.exit(1)", 1), ("sys.exit(200)", DOUBT), ("os.kill(os.getpid(), 9)", -9)):
        script.write(program)
        assert script.run_as_setting() == code
    # A shell that cannot open its script ends with 2, one that reads nothing with 0.
    script.desk.script.write_text("")
    assert script.run_as_setting() == DOUBT
    script.desk.script.unlink()
    assert script.run_as_setting() == DOUBT


def test_the_setting_doubles_percent_signs_and_quotes() -> None:
    quoted = shlex.quote("/a b/100%%'s.pitr/fetch.sh")
    assert script_command(Path("/a b/100%'s.pitr/fetch.sh")) == (
        f"[ -r {quoted} ] && [ -s {quoted} ] && set -- %f %p && . {quoted}; exit 200"
    )
