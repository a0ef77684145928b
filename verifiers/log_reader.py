"""A verifier's log, read from the store and verified: every entry signed, none missing, the tree as signed.

Reference: docs/format.md §10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pitr.errors import NotAuthentic
from pitr.layout import checkpoint_key, log_entry_key, log_number, log_prefix
from pitr.pipeline.sign import Verifier, payload_of
from pitr.verified import get_verified
from storage.store import ObjectStore
from verifiers.checkpoint import Checkpoint, log_origin, open_checkpoint
from verifiers.log_entry import LogEntry, open_entry
from verifiers.merkle import GrowingTree, root_of

# Some entries a day for a thousand years; a listing that is longer is no log of ours.
ENTRIES_MAX = 1_000_000
# Entries are small and many, and a store answers several at once.
_READS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint and the signed note that says it."""

    checkpoint: Checkpoint
    note: str


@dataclass(frozen=True, slots=True)
class LogState:
    """A log's entries from the first on, and its newest checkpoint, which may not cover the last of them.

    ``stored`` entries are in the store; those after them are only known.
    """

    entries: tuple[LogEntry, ...]
    newest: SignedCheckpoint | None
    stored: int

    @property
    def covered(self) -> tuple[LogEntry, ...]:
        """The entries that the newest checkpoint covers."""
        return self.entries[: 0 if self.newest is None else self.newest.checkpoint.size]


def log_key_ids(store: ObjectStore) -> list[str]:
    """Return the ids of the keys that logs are kept with here; unverified.  Raises StoreError."""
    return key_ids(store, "log")


def key_ids(store: ObjectStore, kind: str) -> list[str]:
    """Return the ids of the verifiers' keys that there are objects of ``kind`` of.  As ``log_key_ids``."""
    found: list[str] = []
    start_after: str | None = None
    while (info := next(iter(store.list_objects(f"{kind}/", start_after=start_after)), None)) is not None:
        found.append(info.key.split("/")[1])
        # The digit after "/" is beyond all of this key's own objects.
        start_after = f"{kind}/{found[-1]}/zzzz"
    return found


def logged_key(store: ObjectStore, key_id: str) -> Verifier:
    """Return the key that a log's first entry names, which must be signed by it and have the log's id.

    Raises NotAuthentic, NoGoodCopy, ObjectMissing, StoreError.
    """

    def read(body: bytes) -> Verifier:
        key = Verifier.parse(LogEntry.parse(payload_of(body)).text("public_key") or "")
        if key.key_id != key_id:
            raise NotAuthentic(f"the log of {key_id} begins with another key: {key.key_id}")
        open_entry(body, key)
        return key

    return get_verified(store, log_entry_key(key_id, 0), read)


def read_log(
    store: ObjectStore, repository_id: str, verifier: Verifier, *, known: Sequence[LogEntry] = ()
) -> LogState:
    """Return the log of ``verifier``; entries that are ``known`` are not read again.

    Raises NotAuthentic if an entry is missing, is not the verifier's, or is not what its checkpoint says;
    NoGoodCopy, StoreError.
    """
    origin = log_origin(repository_id, verifier)
    count = _newest(store, log_prefix(verifier.key_id, "entry"))
    if count > ENTRIES_MAX:
        raise NotAuthentic(f"the log of {verifier.key_id} has {count} entries; the limit is {ENTRIES_MAX}")

    def read(sequence: int) -> LogEntry:
        def check(body: bytes) -> LogEntry:
            entry = open_entry(body, verifier)
            if entry.log != origin or entry.sequence != sequence:
                raise NotAuthentic(f"log entry lies in the place of another: {entry.log} {entry.sequence}")
            return entry

        return get_verified(store, log_entry_key(verifier.key_id, sequence), check)

    with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="log") as pool:
        entries = (*known, *pool.map(read, range(len(known), count)))
    size = _newest(store, log_prefix(verifier.key_id, "checkpoint"))
    newest = read_checkpoint(store, verifier, origin, size) if size else None
    state = LogState(entries, newest, count)
    if newest is not None:
        _check_root(state, newest.checkpoint)
    return state


def read_checkpoint(store: ObjectStore, verifier: Verifier, origin: str, size: int) -> SignedCheckpoint:
    """Return the checkpoint over ``size`` entries.  Raises ObjectMissing, NoGoodCopy, StoreError."""

    def check(body: bytes) -> SignedCheckpoint:
        note = body.decode("utf-8", errors="replace")
        checkpoint = open_checkpoint(note, verifier, origin)
        if checkpoint.size != size:
            raise NotAuthentic(f"checkpoint over {checkpoint.size} entries lies in the place of {size}")
        return SignedCheckpoint(checkpoint, note)

    return get_verified(store, checkpoint_key(verifier.key_id, size), check)


def checkpoint_sizes(store: ObjectStore, verifier: Verifier) -> list[int]:
    """Return the sizes that there are checkpoints of, the smallest first.  Raises StoreError."""
    prefix = log_prefix(verifier.key_id, "checkpoint")
    return sorted(log_number(info.key) for info in store.list_objects(prefix))


def roots(entries: Sequence[LogEntry]) -> Iterator[bytes]:
    """Yield the root of the tree after each entry."""
    tree = GrowingTree()
    for entry in entries:
        tree.append(entry.leaf())
        yield tree.root()


def _newest(store: ObjectStore, prefix: str) -> int:
    info = next(iter(store.list_objects(prefix)), None)
    return 0 if info is None else log_number(info.key)


def _check_root(state: LogState, checkpoint: Checkpoint) -> None:
    if checkpoint.size > len(state.entries):
        raise NotAuthentic(
            f"the log has {len(state.entries)} entries, and a checkpoint over {checkpoint.size} was signed",
            hint="entries were removed from the store; another region may have them",
        )
    if root_of([entry.leaf() for entry in state.covered]) != checkpoint.root:
        raise NotAuthentic(
            "the log is not the one that its checkpoint was signed of",
            detail=f"the root of {checkpoint.size} entries differs",
            hint="the log was forked: keep both copies, and find out who has the verifier's key",
        )
