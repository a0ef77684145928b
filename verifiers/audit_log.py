"""The verifier's log, written: what it is about to do stands in the store before it does it.

An entry is a create-only object.  Two writers of one log conflict, and the second takes the next number.
After each entry a checkpoint is signed and put, which all regions get as they get any object.  Nothing is
buffered: an entry that could not be put is not made, and a run that cannot say that it begins must not.
Reference: docs/format.md §10; docs/audit.md.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.errors import MalformedValue, PitrError
from pitr.layout import checkpoint_key, log_entry_key
from pitr.pipeline.sign import Signer, encode_payload
from storage.store import ObjectConflict, ObjectStore
from verifiers.checkpoint import Checkpoint, log_origin, sign_checkpoint
from verifiers.log_entry import ABANDONED, INTENTS, EntryKind, LogEntry, sign_entry
from verifiers.log_memory import LogMemory
from verifiers.log_reader import LogState, SignedCheckpoint, read_log
from verifiers.merkle import GrowingTree, inclusion_proof

# Writers of one log are a daemon and a person beside it; more conflicts in a row are a mistake.
_TRIES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry in the store, and the checkpoints around it: the first over it, the last before it."""

    entry: LogEntry
    checkpoint: SignedCheckpoint
    before: SignedCheckpoint | None


class AuditLog:
    """One verifier's log in one repository.  Thread-safe; reads the store when it is first used."""

    def __init__(
        self, store: ObjectStore, repository_id: str, signer: Signer, *, memory: LogMemory | None = None
    ) -> None:
        self.store: Final = store
        self.repository_id: Final = repository_id
        self.signer: Final = signer
        self.origin: Final = log_origin(repository_id, signer.public)
        self._memory: Final = memory
        # Entries that the verifier remembers and the store had lost; they were put again.
        self.lost_entries = 0
        self._lock = threading.RLock()
        self._entries: list[LogEntry] | None = None
        self._leaves: list[bytes] = []
        self._tree = GrowingTree()
        self._newest: SignedCheckpoint | None = None

    @property
    def key_id(self) -> str:
        """The id of the verifier's key."""
        return self.signer.public.key_id

    def entries(self) -> tuple[LogEntry, ...]:
        """Return the log.  Raises NotAuthentic if the store has another, StoreError, PitrError."""
        with self._lock:
            return tuple(self._loaded())

    def newest_checkpoint(self) -> SignedCheckpoint | None:
        """Return the checkpoint over all entries; None if there are none.  Raises as ``entries``."""
        with self._lock:
            self._loaded()
            return self._newest

    def refresh(self) -> None:
        """Forget what was read: another writer may have gone on."""
        with self._lock:
            self._entries = None

    def append(self, kind: EntryKind, run_id: str, facts: Mapping[str, object], at: datetime) -> Logged:
        """Return once the entry and a checkpoint over it are durable at quorum.

        May be repeated: the same kind, run and facts are one entry.  Raises StoreError, and nothing is
        known of the entry then but that a repetition settles it; NotAuthentic as ``entries``.
        """
        with self._lock:
            for _ in range(_TRIES_MAX):
                try:
                    return self._try_append(kind, run_id, facts, at)
                except ObjectConflict:
                    self._entries = None
                except Exception:
                    # What the store has now is not known.
                    self._entries = None
                    raise
            raise PitrError(
                f"another writer of the log of {self.key_id} is always first",
                hint="see that only one daemon verifies with this key",
            )

    def intend(self, kind: EntryKind, run_id: str, facts: Mapping[str, object], at: datetime) -> Logged:
        """Log that a run is about to begin; once for each ``run_id``.  Raises as ``append``."""
        assert kind in INTENTS, "only these are intended"
        with self._lock:
            intents = [one for one in self._loaded() if one.kind in INTENTS and one.run_id == run_id]
            if any(not _same(one, kind, run_id, facts) for one in intents):
                raise MalformedValue(f"run {run_id} was intended already, and as another")
            return self.append(kind, run_id, facts, at)

    def abandon(self, intent: LogEntry, reason: str, at: datetime) -> Logged:
        """Log that an intended run came to no report; nothing if it has an outcome.  Raises as ``append``."""
        ended = INTENTS[EntryKind(intent.kind)]
        facts = {
            "outcome": ABANDONED,
            "reason": reason[:2000],
            "report_id": None,
            "system_identifier": intent.text("system_identifier"),
        }
        return self.append(ended, intent.run_id, facts, at)

    def refuse_ended(self, intent: LogEntry) -> None:
        """Raise PitrError if the run has an outcome: a second one would be a lie, whichever it is."""
        kind = INTENTS[EntryKind(intent.kind)]
        for entry in self.entries():
            if (entry.kind, entry.run_id) == (kind, intent.run_id):
                raise PitrError(
                    f"run {intent.run_id} was given up while it went on: it gets no report",
                    detail=f"log entry {entry.sequence} says: {entry.text('reason')}",
                    hint="run it again; let one machine alone verify with this key",
                )

    def open_intents(self) -> list[LogEntry]:
        """Return the intents that nothing was said of since; a killed run left them, or it still goes on."""
        return open_intents(self.entries())

    def proof(self, logged: Logged) -> list[bytes]:
        """Return the path from an entry's leaf to the root of its checkpoint."""
        size = logged.checkpoint.checkpoint.size
        with self._lock:
            self._loaded()
            return inclusion_proof(logged.entry.sequence, self._leaves[:size])

    def _try_append(self, kind: EntryKind, run_id: str, facts: Mapping[str, object], at: datetime) -> Logged:
        entries = self._loaded()
        for made in entries:
            if _same(made, kind, run_id, facts):
                return self._around(made)
            # Its own run may have ended it since this one looked.
            if facts.get("outcome") == ABANDONED and (made.kind, made.run_id) == (kind, run_id):
                return self._around(made)
        if not entries and kind is not EntryKind.KEY_EVENT:
            # A log begins with the key that keeps it.
            begun = {"event": "log-begun", "public_key": str(self.signer.public)}
            self._try_append(EntryKind.KEY_EVENT, "log-begun", begun, at)
            entries = self._loaded()
        # A clock that was set back must not make the log's order look wrong.
        at = max(at, entries[-1].at) if entries else at
        entry = LogEntry(self.origin, len(entries), at, kind, run_id, facts)
        # As it will be read back, so that what is compared later is alike.
        entry = LogEntry.parse(entry.content())
        self.store.put(log_entry_key(self.key_id, entry.sequence), sign_entry(entry, self.signer))
        before = self._newest
        self._remember(entry)
        return Logged(entry, self._put_checkpoint(), before)

    def _around(self, made: LogEntry) -> Logged:
        """Return an entry that is there already with checkpoints over it and before it, made again alike."""
        entries, tree = self._loaded(), GrowingTree()
        before: SignedCheckpoint | None = None
        for entry in entries[: made.sequence + 1]:
            tree.append(self._leaves[entry.sequence])
            if entry.sequence == made.sequence - 1:
                before = self._signed(tree, entry)
        return Logged(made, self._signed(tree, made), before)

    def _loaded(self) -> list[LogEntry]:
        if self._entries is None:
            known = self._memory.read() if self._memory is not None else []
            state = read_log(self.store, self.repository_id, self.signer.public, known=known)
            self._take(state, len(known))
        assert self._entries is not None
        return self._entries

    def _take(self, state: LogState, known: int) -> None:
        """Go on from what the store has and what is remembered, and mend what a crash left between."""
        self._entries, self._leaves, self._tree, self._newest = [], [], GrowingTree(), state.newest
        covered = 0 if state.newest is None else state.newest.checkpoint.size
        self.lost_entries += max(0, known - state.stored)
        for entry in state.entries:
            if entry.sequence >= min(state.stored, covered):
                # Not known to be at quorum: the same bytes again, for one region at least may lack them.
                self.store.put(log_entry_key(self.key_id, entry.sequence), sign_entry(entry, self.signer))
            self._remember(entry, is_new=entry.sequence >= known)
        if len(state.entries) > covered:
            self._put_checkpoint()

    def _remember(self, entry: LogEntry, *, is_new: bool = True) -> None:
        if is_new and self._memory is not None:
            self._memory.append(entry)
        assert self._entries is not None
        self._entries.append(entry)
        self._leaves.append(entry.leaf())
        self._tree.append(self._leaves[-1])

    def _signed(self, tree: GrowingTree, last: LogEntry) -> SignedCheckpoint:
        checkpoint = Checkpoint(self.origin, tree.size, tree.root(), last.at)
        return SignedCheckpoint(checkpoint, sign_checkpoint(checkpoint, self.signer))

    def _put_checkpoint(self) -> SignedCheckpoint:
        assert self._entries
        signed = self._signed(self._tree, self._entries[-1])
        self.store.put(checkpoint_key(self.key_id, signed.checkpoint.size), signed.note.encode("utf-8"))
        self._newest = signed
        return signed


def open_intents(entries: tuple[LogEntry, ...]) -> list[LogEntry]:
    """Return the intents without an outcome, the oldest first.  Pure."""
    ended = {(entry.kind, entry.run_id) for entry in entries}
    return [
        entry
        for entry in entries
        if entry.kind in INTENTS and (INTENTS[EntryKind(entry.kind)], entry.run_id) not in ended
    ]


def _same(entry: LogEntry, kind: EntryKind, run_id: str, facts: Mapping[str, object]) -> bool:
    return (
        entry.kind == kind and entry.run_id == run_id and encode_payload(entry.facts) == encode_payload(facts)
    )
