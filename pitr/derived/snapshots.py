"""A snapshot of a site: every master's RDB file, sealed and put; then the record that makes it one.

It is not of one moment: each master's file is, and the record says between which two.  A master that is
away, or slots that move meanwhile, and there is no snapshot; what was put then, nobody names.
Reference: docs/format.md §11.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from pitr.datakeys import HostKeys
from pitr.derived.rdb import HEAD_BYTES, TAIL_BYTES, check_tail, read_head
from pitr.derived.rdb_file import file_chunks, saved_file
from pitr.derived.redis_nodes import Node
from pitr.derived.replication_link import open_link
from pitr.derived.site import Deadline, Site
from pitr.derived.snapshot_record import NodeSnapshot, SnapshotPart, SnapshotRecord
from pitr.derived.topology import Master
from pitr.errors import DerivedInPart, MalformedValue, PitrError
from pitr.layout import ArchiveId, derived_part_key
from pitr.patience import with_patience
from pitr.pipeline.compress import compress_frame
from pitr.pipeline.keys import DataKey
from pitr.pipeline.part_objects import ContainerSeries, PartKind, SealedPart
from pitr.pipeline.seal import Context
from pitr.pipeline.sign import Signer, sign_record
from pitr.repository import Repository
from storage.store import StoreError

RdbFrom: TypeAlias = Literal["replication", "file"]
# Of each part one copy is in memory, for each master that is read.
PART_BYTES: Final = 16 << 20
# Of a file that compresses well a part would hold far more; a reader's work on one object is bounded too.
PART_FRAMES_MAX: Final = 256
AT_ONCE: Final = 4
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class SnapshotTools:
    """What a snapshot is made with: the archive's own place and keys, and the clocks."""

    repository: Repository
    archive: ArchiveId
    signer: Signer
    keys: HostKeys
    now: Callable[[], datetime]
    random: Callable[[int], bytes]
    # Told of the bytes of files that were read so far, from any thread.
    on_progress: Callable[[int], None] = lambda _bytes: None


def take_snapshot(tools: SnapshotTools, site: Site, rdb_from: RdbFrom, deadline: Deadline) -> SnapshotRecord:
    """Return the record once it, and all that it names, is at quorum.

    Raises DerivedInPart if any master was not read to its end or slots moved, DerivedUnavailable,
    DerivedRefused, StoreError: there is no snapshot then, and the call may be repeated.
    """
    look = site.look()
    if look.problems:
        raise _in_part(site, look.problems)
    taken_at = tools.now()
    snapshot = f"{taken_at:%Y%m%dT%H%M%SZ}-{site.name}-{tools.random(4).hex()}"
    data_key = tools.keys.backup_key(taken_at)
    run = _Run(tools, site, rdb_from, deadline, snapshot, data_key)
    nodes = run.read_all(look.topology.masters)
    after = site.look()
    if after.topology.owners != look.topology.owners or after.problems:
        raise _in_part(site, after.problems or ("slots changed their masters meanwhile",))
    record = SnapshotRecord(
        tools.repository.repository_id,
        tools.archive,
        snapshot,
        site.name,
        look.topology.is_cluster,
        taken_at,
        tools.now(),
        data_key.key_id,
        nodes,
    )
    body = sign_record(record.to_payload(), tools.signer)
    run.put(record.key, body, hashlib.sha256(body).digest())
    return record


def _in_part(site: Site, problems: tuple[str, ...]) -> DerivedInPart:
    return DerivedInPart(
        f"there is no snapshot of Redis {site.name}: not all of it could be had",
        detail="\n".join(problems),
        hint="repeat it when every master answers and no slots move",
    )


class _Run:
    """One snapshot that is being taken: a few masters at a time, each in a thread of its own."""

    def __init__(
        self,
        tools: SnapshotTools,
        site: Site,
        rdb_from: RdbFrom,
        deadline: Deadline,
        snapshot: str,
        data_key: DataKey,
    ) -> None:
        self._tools = tools
        self._site = site
        self._rdb_from: RdbFrom = rdb_from
        self._deadline = deadline
        self._snapshot = snapshot
        self._data_key = data_key
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._done_bytes = 0

    def read_all(self, masters: tuple[Master, ...]) -> tuple[NodeSnapshot, ...]:
        """Return the nodes' parts of the record, in the order of ``masters``."""
        nodes: list[NodeSnapshot] = []
        problems: list[str] = []
        try:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="redis-snapshot") as threads:
                waiting = [threads.submit(self._read, *numbered) for numbered in enumerate(masters)]
                for master, one in zip(masters, waiting, strict=True):
                    try:
                        nodes.append(one.result())
                    except StoreError:
                        self._stopping.set()
                        raise
                    except PitrError as error:
                        self._stopping.set()
                        problems.append(f"master {master.address}: {error.detail or error.message}")
        except BaseException:
            self._stopping.set()
            raise
        if problems:
            raise _in_part(self._site, tuple(problems))
        return tuple(nodes)

    def put(self, key: str, body: bytes, sha256: bytes) -> None:
        """Put an object: the same bytes again while too few regions answer."""
        store = self._tools.repository.store
        with_patience(
            lambda: store.put(key, body, sha256=sha256), patience_s=_PATIENCE_S, stopping=self._stopping
        )

    def _read(self, number: int, master: Master) -> NodeSnapshot:
        with self._site.connect(master) as node:
            facts, began_at = node.info("server"), node.now()
            keys = _keys(node)
            parts = _Parts(self, number)
            with self._rdb(node, master) as chunks:
                for chunk in chunks:
                    if self._stopping.is_set():
                        raise DerivedInPart("another master could not be read")
                    parts.add(chunk)
                    self._tell(len(chunk))
                parts.finish()
            return NodeSnapshot(
                master.node_id,
                master.address,
                facts.get("redis_version", ""),
                master.slots,
                began_at,
                node.now(),
                keys,
                parts.size_bytes,
                parts.digest,
                tuple(parts.stored),
            )

    @contextmanager
    def _rdb(self, node: Node, master: Master) -> Iterator[Iterator[bytes]]:
        if self._rdb_from == "file":
            with saved_file(node, self._deadline) as file:
                yield file_chunks(file, self._deadline)
        else:
            with open_link(self._site.access, master, self._deadline) as link:
                yield link.chunks(link.begin())

    def _tell(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            done = self._done_bytes
        self._tools.on_progress(done)

    def series(self, number: int, stored: list[SnapshotPart]) -> ContainerSeries:
        """Return what seals and puts the parts of node ``number``."""
        tools = self._tools

        def context(kind: PartKind, part: int, index: int) -> Context:
            name = f"{self._snapshot}/{part:04d}/{index:06d}"
            return Context(tools.repository.repository_id, tools.archive, kind, name)

        def sink(part: SealedPart) -> None:
            key = derived_part_key(tools.archive, self._snapshot, part.part, part.number)
            self.put(key, part.body, part.sha256)
            stored.append(SnapshotPart(len(part.body), bytes(part.sha256)))

        return ContainerSeries("derived", number, self._data_key, context, sink)


class _Parts:
    """One file on its way: measured, judged from outside, compressed, sealed and put."""

    def __init__(self, run: _Run, number: int) -> None:
        self.stored: list[SnapshotPart] = []
        self.size_bytes = 0
        self._series = run.series(number, self.stored)
        self._hash = hashlib.sha256()
        self._tail = b""

    @property
    def digest(self) -> bytes:
        return self._hash.digest()

    def add(self, chunk: bytes) -> None:
        if self.size_bytes == 0:
            read_head(chunk[:HEAD_BYTES])
        self._hash.update(chunk)
        self.size_bytes += len(chunk)
        self._tail = (self._tail + chunk[-TAIL_BYTES:])[-TAIL_BYTES:]
        if self._series.size_bytes >= PART_BYTES or self._series.frames >= PART_FRAMES_MAX:
            self._series.finish()
        self._series.add_frame(compress_frame(chunk))

    def finish(self) -> None:
        if self.size_bytes == 0:
            raise MalformedValue("the RDB file is empty")
        check_tail(self._tail)
        self._series.finish()


def _keys(node: Node) -> int:
    """Return how many keys the server says that it has."""
    counts = (text.partition(",")[0].removeprefix("keys=") for text in node.info("keyspace").values())
    return sum(int(count) for count in counts if count.isdigit())
