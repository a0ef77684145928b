"""``pitr`` in a process that says at its end how much memory it had in use at most.

Arguments: the file to write the peak to, in bytes, and the words of the command.  The peak is asked for from
within, for what the kernel tells a parent of its child's memory counts what the child was before its exec.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main() -> None:
    from cli.main import run_cli

    report, words = Path(sys.argv[1]), sys.argv[2:]
    code = run_cli(words)
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    report.write_text(str(int(found[1]) * 1024))
    sys.exit(code)


if __name__ == "__main__":
    main()
