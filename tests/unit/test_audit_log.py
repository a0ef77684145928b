"""The verifier's log: entries that cannot be unsaid, in a store that may fail, lose or lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr.errors import MalformedValue, NoGoodCopy, NotAuthentic
from pitr.layout import checkpoint_key, log_entry_key, log_number
from pitr.pipeline.sign import Signer
from storage.memory import MemoryStore
from storage.store import CopyCheck, ObjectInfo, StoreUnavailable
from verifiers.audit_log import AuditLog, open_intents
from verifiers.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from verifiers.log_entry import ABANDONED, EntryKind, LogEntry, sign_entry
from verifiers.log_memory import LogMemory, MemoryFailed
from verifiers.log_reader import checkpoint_sizes, log_key_ids, read_log
from verifiers.merkle import verify_inclusion

REPOSITORY = "0123456789abcdef" * 2
VERIFIER = Signer(hashlib.sha256(b"the verifier").digest())
OTHER = Signer(hashlib.sha256(b"another").digest())
BEGIN = datetime(2026, 11, 1, 3, 0, tzinfo=UTC)


class FailingStore(MemoryStore):
    """A store that can be told to fail: before a put is done, or after it, when the answer is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_before: Callable[[str], bool] = lambda key: False
        self.fail_after: Callable[[str], bool] = lambda key: False

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        if self.fail_before(key):
            raise StoreUnavailable("the region is away")
        super().put(key, body, sha256=sha256, after_all=after_all)
        if self.fail_after(key):
            raise StoreUnavailable("no answer")


class LyingStore(MemoryStore):
    """A store that has other bytes under some keys than were put."""

    def __init__(self, changed: dict[str, bytes | None]) -> None:
        super().__init__()
        self.changed = changed

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        body = self.changed.get(key) or super().get(key)
        if check is not None:
            check(body)
        return body

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        for info in super().list_objects(prefix, start_after=start_after):
            if self.changed.get(info.key, b"") is not None:
                yield info


def log_in(store: MemoryStore, memory: Path | None = None) -> AuditLog:
    return AuditLog(store, REPOSITORY, VERIFIER, memory=LogMemory(memory) if memory else None)


def observe(log: AuditLog, number: int) -> None:
    log.append(
        EntryKind.OBSERVED, f"run-{number}", {"head_sequence": number}, BEGIN + timedelta(hours=number)
    )


def filled(store: MemoryStore, count: int) -> AuditLog:
    log = log_in(store)
    for number in range(count):
        observe(log, number)
    return log


def test_an_intent_stands_in_the_store_with_a_checkpoint_before_the_call_returns() -> None:
    store = MemoryStore()
    logged = log_in(store).intend(EntryKind.VERIFICATION_INTENDED, "run-1", {"target": "latest"}, BEGIN)
    state = read_log(store, REPOSITORY, VERIFIER.public)
    assert [entry.kind for entry in state.covered] == ["key-event", "verification-intended"]
    assert state.covered[1] == logged.entry
    assert state.newest == logged.checkpoint
    assert state.covered[0].text("public_key") == str(VERIFIER.public)
    assert logged.before is not None
    assert logged.before.checkpoint.size == 1


def test_an_intent_is_in_the_tree_of_its_checkpoint() -> None:
    log = filled(MemoryStore(), 5)
    logged = log.intend(EntryKind.VERIFICATION_INTENDED, "run-9", {}, BEGIN)
    checkpoint = logged.checkpoint.checkpoint
    proof = log.proof(logged)
    verify_inclusion(logged.entry.sequence, checkpoint.size, logged.entry.leaf(), proof, checkpoint.root)


def test_an_intent_that_cannot_be_put_is_not_made_and_may_be_repeated() -> None:
    store = FailingStore()
    log = filled(store, 2)
    for attribute in ("fail_before", "fail_after"):
        setattr(store, attribute, lambda key: "/entry/" in key)
        with pytest.raises(StoreUnavailable):
            log.intend(EntryKind.VERIFICATION_INTENDED, attribute, {}, BEGIN)
        setattr(store, attribute, lambda key: False)
        log.intend(EntryKind.VERIFICATION_INTENDED, attribute, {}, BEGIN)
    runs = [entry.run_id for entry in read_log(store, REPOSITORY, VERIFIER.public).covered]
    assert runs == ["log-begun", "run-0", "run-1", "fail_before", "fail_after"]


@pytest.mark.parametrize("puts", range(12))
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("remembers", [False, True])
def test_a_writer_killed_at_any_put_leaves_a_log_that_goes_on(
    puts: int, after: bool, remembers: bool, tmp_path: Path
) -> None:
    memory = tmp_path / "log" if remembers else None
    store = FailingStore()
    made: list[int] = []
    done = [0]

    def fails(_key: str) -> bool:
        done[0] += 1
        return done[0] > puts

    setattr(store, "fail_after" if after else "fail_before", fails)
    log = log_in(store, memory)

    def work() -> None:
        for number in range(20):
            observe(log, number)
            made.append(number)

    with pytest.raises(StoreUnavailable):
        work()
    store.fail_before = store.fail_after = lambda key: False
    again = log_in(store, memory)
    kept = [entry.run_id for entry in again.entries() if entry.kind == "observed"]
    # What was acknowledged is there; at most the one whose answer was lost is there too.
    assert kept[: len(made)] == [f"run-{number}" for number in made]
    assert len(kept) <= len(made) + 1
    observe(again, 99)
    state = read_log(store, REPOSITORY, VERIFIER.public)
    assert state.covered == state.entries == again.entries()


def test_two_writers_of_one_log_take_turns() -> None:
    store = MemoryStore()
    first, second = filled(store, 1), log_in(store)
    for number in range(1, 9):
        observe(first if number % 2 else second, number)
    state = read_log(store, REPOSITORY, VERIFIER.public)
    assert [entry.run_id for entry in state.covered][1:] == [f"run-{number}" for number in range(9)]
    assert checkpoint_sizes(store, VERIFIER.public) == list(range(1, 11))


def test_the_same_entry_twice_is_one_and_a_run_is_not_intended_as_two() -> None:
    log = log_in(MemoryStore())
    first = log.intend(EntryKind.VERIFICATION_INTENDED, "run", {"seed_sha256": "00"}, BEGIN)
    observe(log, 1)
    again = log.intend(
        EntryKind.VERIFICATION_INTENDED, "run", {"seed_sha256": "00"}, BEGIN + timedelta(days=1)
    )
    assert (again.entry, again.checkpoint, again.before) == (first.entry, first.checkpoint, first.before)
    with pytest.raises(MalformedValue, match="as another"):
        log.intend(EntryKind.VERIFICATION_INTENDED, "run", {"seed_sha256": "01"}, BEGIN)
    with pytest.raises(MalformedValue, match="as another"):
        log.intend(EntryKind.DRILL_INTENDED, "run", {"seed_sha256": "00"}, BEGIN)


def test_what_was_intended_and_has_no_outcome_is_found_and_can_be_abandoned() -> None:
    log = log_in(MemoryStore())
    for run in ("killed", "well"):
        log.intend(EntryKind.DRILL_INTENDED, run, {"system_identifier": "7"}, BEGIN)
    log.append(EntryKind.DRILL_ENDED, "well", {"outcome": "PASSED"}, BEGIN)
    (left,) = log.open_intents()
    assert left.run_id == "killed"
    log.abandon(left, "the process was killed", BEGIN)
    assert open_intents(log.entries()) == []
    assert log.entries()[-1].facts["outcome"] == ABANDONED


def test_a_run_that_has_an_outcome_is_not_abandoned_by_another_writer() -> None:
    store = MemoryStore()
    log, other = log_in(store), log_in(store)
    intent = log.intend(EntryKind.DRILL_INTENDED, "run", {"system_identifier": "7"}, BEGIN).entry
    assert other.open_intents() == [intent]
    ended = log.append(EntryKind.DRILL_ENDED, "run", {"outcome": "PASSED"}, BEGIN)
    assert other.abandon(intent, "the process was killed", BEGIN).entry == ended.entry
    assert log_in(store).entries()[-1] == ended.entry


def test_a_clock_that_was_set_back_does_not_turn_the_order_round() -> None:
    log = log_in(MemoryStore())
    observe(log, 5)
    observe(log, 1)
    times = [entry.at for entry in log.entries()]
    assert times == sorted(times)


def test_a_store_that_lost_what_the_verifier_remembers_gets_it_again(tmp_path: Path) -> None:
    store = MemoryStore()
    log = log_in(store, tmp_path / "log")
    for number in range(6):
        observe(log, number)
    for size in (5, 6, 7):
        store.delete(log_entry_key(VERIFIER.public.key_id, size - 1))
        store.delete(checkpoint_key(VERIFIER.public.key_id, size))
    again = log_in(store, tmp_path / "log")
    observe(again, 6)
    assert again.lost_entries == 3
    state = read_log(store, REPOSITORY, VERIFIER.public)
    assert [entry.run_id for entry in state.covered][1:] == [f"run-{number}" for number in range(7)]


def test_a_log_that_was_rewritten_by_the_key_itself_is_seen_by_who_remembers(tmp_path: Path) -> None:
    store = MemoryStore()
    log = log_in(store, tmp_path / "log")
    for number in range(3):
        observe(log, number)
    forged = MemoryStore()
    forger = log_in(forged)
    for number in (0, 1, 3, 4, 5):
        observe(forger, number)
    with pytest.raises(NotAuthentic, match="not the one that its checkpoint"):
        log_in(forged, tmp_path / "log").entries()


@pytest.mark.parametrize("remembered", [0, 1, 40])
def test_a_line_that_a_crash_cut_off_is_dropped(remembered: int, tmp_path: Path) -> None:
    store = MemoryStore()
    log = log_in(store, tmp_path / "log")
    for number in range(3):
        observe(log, number)
    body = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(body[: len(body) - 1 - remembered])
    assert log_in(store, tmp_path / "log").entries() == log.entries()
    assert (tmp_path / "log").read_bytes() == body


def test_a_copy_that_somebody_changed_is_refused(tmp_path: Path) -> None:
    log = log_in(MemoryStore(), tmp_path / "log")
    observe(log, 1)
    body = (tmp_path / "log").read_bytes()
    for wrong in (
        body.replace(b"run-1", b"run -1"),
        body[body.index(b"\n") + 1 :],
        body.replace(b'"at"', b'"in"'),
    ):
        (tmp_path / "log").write_bytes(wrong)
        with pytest.raises(MemoryFailed):
            log_in(MemoryStore(), tmp_path / "log").entries()


def entry(sequence: int, **other: object) -> LogEntry:
    fields = {"log": f"pitr/{REPOSITORY}/{VERIFIER.public.key_id}", "sequence": sequence, "at": BEGIN}
    fields |= {"kind": "observed", "run_id": "forged", "facts": {}} | other
    return LogEntry(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (sign_entry(entry(2), OTHER), "another signer"),
        (sign_entry(entry(2), VERIFIER), "not the one that its checkpoint"),
        (sign_entry(entry(1), VERIFIER), "in the place of another"),
        (sign_entry(entry(2, log="pitr/of/another"), VERIFIER), "in the place of another"),
        (b"no record", "not a signed record"),
        (None, "checkpoint over 4"),
    ],
)
def test_a_reader_refuses_a_log_that_was_changed(body: bytes | None, told: str) -> None:
    key = log_entry_key(VERIFIER.public.key_id, 2 if body is not None else 3)
    store = LyingStore({})
    filled(store, 3)
    store.changed[key] = body
    with pytest.raises((NotAuthentic, NoGoodCopy)) as caught:
        read_log(store, REPOSITORY, VERIFIER.public)
    assert told in f"{caught.value} {caught.value.detail}"


def test_a_checkpoint_is_a_signed_note_of_the_verifier_for_this_log_alone() -> None:
    log = filled(MemoryStore(), 1)
    note = log.append(EntryKind.OBSERVED, "x", {}, BEGIN).checkpoint.note
    checkpoint = open_checkpoint(note, VERIFIER.public, log.origin)
    assert checkpoint.size == 3
    assert sign_checkpoint(checkpoint, VERIFIER) == note
    elsewhere = Checkpoint(
        "pitr/" + "f" * 32 + "/" + VERIFIER.public.key_id, 3, checkpoint.root, checkpoint.at
    )
    refused = [
        sign_checkpoint(checkpoint, OTHER),
        sign_checkpoint(elsewhere, VERIFIER),
        note.replace("\n3\n", "\n4\n"),
        note.replace("\n3\n", "\n03\n"),
        note + "\n",
        note[:-1],
        note.replace("2026", "2025"),
        note.replace("— ", "- "),
    ]
    for wrong in refused:
        with pytest.raises(NotAuthentic):
            open_checkpoint(wrong, VERIFIER.public, log.origin)
    for at in range(len(note)):
        if note[at] == "\n":
            continue
        changed = note[:at] + chr(ord(note[at]) ^ 1) + note[at + 1 :]
        with pytest.raises(NotAuthentic):
            open_checkpoint(changed, VERIFIER.public, log.origin)


def test_keys_are_found_and_newer_ones_sort_first() -> None:
    store = MemoryStore()
    filled(store, 3)
    other = AuditLog(store, REPOSITORY, OTHER)
    observe(other, 1)
    assert log_key_ids(store) == sorted([VERIFIER.public.key_id, OTHER.public.key_id])
    numbers = [log_number(info.key) for info in store.list_objects(f"log/{VERIFIER.public.key_id}/entry/")]
    assert numbers == [4, 3, 2, 1]
