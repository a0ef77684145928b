"""``make bench [ONLY=name] [QUICK=1]``: run the figures, print the table, write results.json."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Row, show, write

# Each name is a module with `run_all(work: Path, quick: bool) -> list[Row]`.
NAMES = (
    "rpo",
    "sync",
    "wal-receive",
    "archive",
    "full",
    "incremental",
    "restore",
    "replay",
    "verify",
    "events",
)
RESULTS = Path(__file__).parent / "results.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", choices=NAMES, default=os.environ.get("ONLY") or None)
    parser.add_argument("--quick", action="store_true", default=os.environ.get("QUICK") == "1")
    options = parser.parse_args()
    # An installed program is not compiled again at each start: the first run writes what the others read.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    rows: list[Row] = []
    for name in [options.only] if options.only else NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
        with tempfile.TemporaryDirectory(prefix="pitr-bench-") as folder:
            # A server that runs as another user must be able to walk in.
            Path(folder).chmod(0o755)
            rows += module.run_all(Path(folder), options.quick)
    show(rows)
    write(rows, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
