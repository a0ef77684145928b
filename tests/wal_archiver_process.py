"""An archiver as a process of its own, for tests that kill it.  Arguments: DSN ROOT SYSTEM-IDENTIFIER.

Three regions are directories below ROOT, written at a quorum of two.  SIGTERM drains.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

from fix_wal_archive import Told, WalHouse

from pitr.spool import DirectorySpool
from storage.local import DirectoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore

REGIONS = ("north", "south", "west")
QUORUM = 2


def regions(root: Path) -> list[Region]:
    return [Region(name, DirectoryStore.create(root / name)) for name in REGIONS]


def main(dsn: str, root: Path, system_identifier: int) -> None:
    with closing(RepairQueue(root / "repair.db")) as queue:
        store = ReplicatedStore(regions(root), quorum=QUORUM, queue=queue)
        spool = DirectorySpool(root / "spool", bytes_max=1 << 30)
        archiver = WalHouse(store, system_identifier).archiver(dsn, spool, Told())
        signal.signal(
            signal.SIGTERM,
            lambda *_: threading.Thread(target=archiver.stop, args=(30.0,), daemon=True).start(),
        )
        print("ready", flush=True)
        print(archiver.run(), flush=True)
        store.close(10.0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
