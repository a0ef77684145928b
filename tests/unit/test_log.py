"""The daemon's log where it cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.log import LastingStream


def test_a_full_disk_under_the_log_ends_nobody_and_later_lines_are_there(tmp_path: Path) -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 — to close it fails as well
    lasting = LastingStream(full)
    for _ in range(1000):
        print("a line of the log, longer than any buffer when it is repeated", file=lasting, flush=True)
    with pytest.raises(OSError, match="No space left"):
        full.close()
    with (tmp_path / "log").open("w") as there:
        print("a line", file=LastingStream(there), flush=True)
        assert (tmp_path / "log").read_text() == "a line\n"
    print("a line for nobody", file=LastingStream(there), flush=True)
