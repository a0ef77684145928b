"""How far a long run is: a bar where a person looks, now and then a line elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import io
import os
import pty
from contextlib import closing

import pytest

from cli.output import Output
from cli.progress import ProgressReport

MIB = 1 << 20


def shown_on_a_terminal(unit: str | None = None, **choices: object) -> str:
    """Return what a terminal is sent while a run goes from a quarter to three quarters."""
    ours, theirs = pty.openpty()
    with (
        closing(os.fdopen(theirs, "w")) as terminal,
        ProgressReport(Output(stderr=terminal, **choices), unit=unit) as report,  # type: ignore[arg-type]  # its fields
    ):
        for part in (1, 3):
            report.update("copying files", part * MIB, 4 * MIB)
    shown = b""
    # The kernel hands it over in its own time; once nobody has the other end, the end is an error.
    with contextlib.suppress(OSError):
        while more := os.read(ours, 65_536):
            shown += more
    os.close(ours)
    return shown.decode()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = shown_on_a_terminal()
    assert "copying files" in shown
    assert "━" in shown
    assert "3.0/4.0 MiB" in shown


def test_who_wants_plain_lines_gets_no_bar_on_a_terminal_either() -> None:
    assert shown_on_a_terminal(progress="plain") == "copying files 1.0 MiB of 4.0 MiB (0.0 s)\r\n"


@pytest.mark.parametrize(
    ("choices", "lines"),
    [
        ({}, ["copying files 1.0 MiB of 4.0 MiB (0.0 s)", "copying files 3.0 MiB of 4.0 MiB (10.0 s)"]),
        ({"progress": "none"}, []),
        ({"is_quiet": True}, []),
    ],
    ids=["auto", "none", "quiet"],
)
def test_a_file_gets_one_line_each_ten_seconds_and_no_bar(
    choices: dict[str, object], lines: list[str]
) -> None:
    times = iter((0.0, 0.0, 9.9, 10.0, 19.9))
    file = io.StringIO()
    output = Output(stderr=file, **choices)  # type: ignore[arg-type]  # they are its fields
    with ProgressReport(output, clock=times.__next__) as report:
        for part in (1, 2, 3, 4):
            report.update("copying files", part * MIB, 4 * MIB)
    assert file.getvalue().splitlines() == lines


def test_what_is_no_bytes_is_counted_in_its_own_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    with ProgressReport(Output(stderr=lines), clock=lambda: 0.0, unit="events") as report:
        report.update("replay orders", 12_000, 20_000)
    assert lines.getvalue() == "replay orders 12,000 events of 20,000 events (0.0 s)\n"
    monkeypatch.setenv("TERM", "xterm")
    assert "3145728/4194304" in shown_on_a_terminal(unit="events")
