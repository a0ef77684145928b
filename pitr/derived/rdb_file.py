"""An RDB file that a server on this host writes: BGSAVE, awaited, and the file proven to be its own.

A server says where it writes, but not on which machine: a file of that name here may be another server's.
So it counts only if its beginning says that it was begun after we asked, by the clock of the one we asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from pitr.derived.rdb import HEAD_BYTES, read_head
from pitr.derived.redis_nodes import Node
from pitr.derived.replication_link import CHUNK_BYTES
from pitr.derived.site import Deadline
from pitr.errors import DerivedRefused, MalformedValue

_POLL_S: Final = 0.2


@contextmanager
def saved_file(node: Node, deadline: Deadline) -> Iterator[BinaryIO]:
    """Let the server write its file, and open that.  Raises DerivedRefused, DerivedUnavailable.

    What is open stays what it is: the next BGSAVE writes a new file and renames it.
    """
    began_s = int(node.now().timestamp())
    while not node.save_in_background():
        # Another one is on its way, begun before we asked.
        deadline.check(f"waiting for a BGSAVE of {node.address}")
        deadline.pause(_POLL_S)
    while node.info("persistence").get("rdb_bgsave_in_progress") != "0":
        deadline.check(f"the BGSAVE of {node.address}")
        deadline.pause(_POLL_S)
    if node.info("persistence").get("rdb_last_bgsave_status") != "ok":
        raise DerivedRefused(
            f"the BGSAVE of Redis at {node.address} failed", hint="see the server's log, and its disk"
        )
    path = Path(node.setting("dir") or "") / (node.setting("dbfilename") or "")
    try:
        file = path.open("rb")
    except OSError as error:
        raise _not_here(node, path, error.strerror or str(error)) from error
    with file:
        check_own(node, path, file, began_s)
        yield file


def file_chunks(file: BinaryIO, deadline: Deadline) -> Iterator[bytes]:
    """Yield a file in chunks."""
    while chunk := file.read(CHUNK_BYTES):
        deadline.check(f"reading {file.name}")
        yield chunk


def check_own(node: Node, path: Path, file: BinaryIO, began_s: int) -> None:
    """Raise DerivedRefused unless ``file`` was begun at ``began_s`` or later, by the server's own clock."""
    try:
        created_s = read_head(file.read(HEAD_BYTES)).created_s
    except MalformedValue as error:
        raise _not_here(node, path, error.message) from error
    file.seek(0)
    last = node.info("persistence").get("rdb_last_save_time", "")
    if created_s is None or not last.isdigit() or not began_s <= created_s <= int(last):
        raise _not_here(node, path, "it is not the file that this server has just written")


def _not_here(node: Node, path: Path, why: str) -> DerivedRefused:
    return DerivedRefused(
        f"the RDB file {path} of Redis at {node.address} cannot be used here",
        detail=why,
        hint='set snapshots = "replication" in [[redis]] for servers of other hosts and containers',
    )
