"""systemd's own judge of the unit that is offered, and whether it fits the daemon that it starts."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from fix_apt import AptProgram
from fix_cli import CHECKOUT, MakeSite, PitrProgram

from cli.daemon_core import CLOSE_STORE_S
from cli.errors import ExitCode
from cli.units import parse_duration
from pitr.postgres.server_user import ServerUser, as_user, hand_over

UNIT = CHECKOUT / "examples" / "systemd" / "pitr.service"
TEXT = UNIT.read_text(encoding="utf-8")
CONFIG = tomllib.loads((CHECKOUT / "examples" / "pitr.toml").read_text(encoding="utf-8"))


def setting(name: str) -> str:
    """Return the value of a setting, which must be there once."""
    (value,) = re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)
    assert isinstance(value, str)
    return value


COMMAND = shlex.split(setting("ExecStart"))


def runnable(text: str, folder: Path) -> Path:
    """Write the unit with a program that is there, since its own is not installed where tests run."""
    program = folder / "pitr"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = folder / UNIT.name
    unit.write_text(text.replace(COMMAND[0], str(program)))
    return unit


@pytest.mark.needs_apt
def test_systemd_accepts_the_unit_without_a_word(tmp_path: Path, systemd_analyze: AptProgram) -> None:
    assert systemd_analyze.must("verify", runnable(TEXT, tmp_path)) == ""


@pytest.mark.needs_apt
def test_systemd_accepts_the_watchdogs_unit_too(tmp_path: Path, systemd_analyze: AptProgram) -> None:
    text = UNIT.with_name("pitr-watchdog.service").read_text(encoding="utf-8")
    assert "ExecStart=/usr/local/bin/pitr watchdog " in text
    unit = runnable(text, tmp_path).rename(tmp_path / "pitr-watchdog.service")
    assert systemd_analyze.must("verify", unit) == ""


@pytest.mark.needs_apt
@pytest.mark.parametrize(
    ("line", "wrong", "words"),
    [
        ("Type=notify", "Type=notified", "notified"),
        ("NoNewPrivileges=yes", "NoNewPriviledges=yes", "NoNewPriviledges"),
        ("TimeoutStopSec=90s", "TimeoutStopSec=90 parsecs", "parsecs"),
    ],
)
def test_what_systemd_would_pass_over_is_told(
    line: str, wrong: str, words: str, tmp_path: Path, systemd_analyze: AptProgram
) -> None:
    # Such a line is no error to systemd: the unit starts without it, so silence must be what is asked for.
    assert TEXT.count(f"{line}\n") == 1
    assert words in systemd_analyze.run("verify", runnable(TEXT.replace(line, wrong), tmp_path)).stdout


def test_every_option_of_the_unit_is_one_of_the_daemons(tmp_path: Path) -> None:
    pitr = PitrProgram(tmp_path)
    assert COMMAND[1] == "daemon"
    options = [word.split("=")[0] for word in COMMAND[2:] if word.startswith("-")]
    text = pitr("daemon", "--help").stdout
    offered = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    assert options
    assert set(options) <= offered
    # And it stands so that the daemon reads it: what it misses is the file, which is not here.
    missed = pitr(*[word.replace("/etc/pitr", str(tmp_path)) for word in COMMAND[1:]], exit_code=2)
    assert f"no configuration file {tmp_path / 'pitr.toml'}" in missed.stderr


def test_the_unit_leaves_a_stop_the_time_that_it_takes() -> None:
    # The daemon's own limits: half the drain for tasks, the drain, and twice the closing of the stores.
    drain_s = parse_duration(CONFIG["daemon"]["drain"])
    assert parse_duration(setting("TimeoutStopSec")) > 1.5 * drain_s + 2 * CLOSE_STORE_S


def test_the_unit_lets_the_daemon_write_where_the_configuration_says() -> None:
    assert setting("ReadWritePaths") == CONFIG["daemon"]["state_dir"]
    assert f"/var/lib/{setting('StateDirectory')}" == CONFIG["daemon"]["state_dir"]
    for path in (CONFIG["keys"]["signing_key_file"], COMMAND[-1]):
        assert str(path).startswith("/etc/pitr/")


def test_the_unit_does_not_repeat_what_only_a_person_mends() -> None:
    codes = {int(word) for word in setting("RestartPreventExitStatus").split()}
    assert codes == {ExitCode.USAGE, ExitCode.KEY, ExitCode.NOT_INITIALISED}


def confined(user: ServerUser, *writable: Path) -> list[str]:
    """Return words that exec a command as the unit would: by a user without rights, who writes little."""
    script = 'for kept in $0; do mount --bind "$kept" "$kept"; done; mount -o remount,bind,ro / && exec "$@"'
    places = " ".join(map(str, writable))
    rights = ["setpriv", "--no-new-privs", "--inh-caps=-all"]
    if user.is_mapped:
        # Root may not take another number without this right (user_namespaces(7)), and has none after that.
        rights += ["--bounding-set=-all,+setfcap", *as_user(user)[0]]
    else:
        rights += ["--bounding-set=-all", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    return ["unshare", "--mount", "sh", "-c", script, places, *rights]


@pytest.mark.needs_apt
def test_the_daemon_needs_no_more_than_the_unit_allows(
    make_site: MakeSite, server_user_or_none: ServerUser | None
) -> None:
    if server_user_or_none is None:
        pytest.fail("only root can take a file system's writing away: run this as root", pytrace=False)
    site = make_site()
    hand_over(site.folder, server_user_or_none)
    # In the unit's words: StateDirectory=, and a ReadWritePaths= for each region that is a directory.
    site.daemon.prefix = confined(server_user_or_none, site.state_dir, *(one.path for one in site.regions))
    elsewhere = [*site.daemon.prefix, "touch", str(site.folder / "elsewhere")]
    refused = subprocess.run(elsewhere, capture_output=True, text=True, timeout=60, check=False)
    assert "Read-only file system" in refused.stderr
    site.start_daemon()
    site.server.execute("CREATE TABLE visits (id int PRIMARY KEY)")
    site("backup")
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    assert "all WAL received is durable" in site.daemon.tail()
