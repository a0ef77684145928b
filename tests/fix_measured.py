"""Commands of ``pitr`` whose memory is measured, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fix_cli import Done, Site

MEMORY_BYTES_MAX = 300 * 1024 * 1024
_TIMEOUT_S = 3000.0
_CHILD = Path(__file__).with_name("measured_child.py")


@dataclass(frozen=True, slots=True)
class Measured:
    """A command that ended, the most memory that its process had in use, and how long it took."""

    done: Done
    peak_bytes: int
    seconds: float


def measured(site: Site, *words: object) -> Measured:
    """Run a command of a site with ``--json``; fail if it does, or if it takes more than MEMORY_BYTES_MAX.

    What PostgreSQL takes is not counted: the server is nobody's child here, a restore's is its own process.
    """
    report = site.folder / "peak-bytes"
    report.unlink(missing_ok=True)
    all_words = ["-c", str(site.config), *map(str, words), "--json"]
    begun = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(_CHILD), str(report), *all_words],
        cwd=site.folder,
        env=site.program.env(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    seconds = time.monotonic() - begun
    done = Done(tuple(all_words), ended.returncode, ended.stdout, ended.stderr)
    assert done.exit_code == 0, str(done)
    peak_bytes = int(report.read_text())
    print(f"{' '.join(map(str, words[:2]))}: {seconds:.1f} s, at most {peak_bytes / (1 << 20):.0f} MiB")
    assert peak_bytes <= MEMORY_BYTES_MAX, str(done)
    return Measured(done, peak_bytes, seconds)
