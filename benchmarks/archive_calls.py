"""One archive_command, called for one segment after the other as PostgreSQL does.

``python -m benchmarks.archive_calls COMMAND DATA-DIRECTORY NAME…``: a process of its own, so that whatever
the calls leave running is its child too: it waits for all of it, and tells wall time, CPU and each call's
time as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time

# prctl(2): orphans become children of this process.
_SET_CHILD_SUBREAPER = 36


def main() -> None:
    _, command, data_dir, *names = sys.argv
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit("prctl failed")
    os.chdir(data_dir)
    began, each_s = time.monotonic(), []
    for name in names:
        words = command.replace("%p", f"pg_wal/{name}").replace("%f", name).replace("%%", "%")
        started = time.monotonic()
        # PostgreSQL repeats what fails.
        while subprocess.run(["/bin/sh", "-c", words], check=False).returncode != 0:
            if time.monotonic() - started > 300:
                sys.exit(f"{words!r} does not succeed")
            time.sleep(0.2)
        each_s.append(time.monotonic() - started)
    wall_s = time.monotonic() - began
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"wall_s": wall_s, "cpu_s": spent.ru_utime + spent.ru_stime, "each_s": each_s}))


if __name__ == "__main__":
    main()
