"""What an interrupted backup leaves, and what the next one takes over of it; without a server."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fix_attempts import Attempts
from fix_chain import MIB, PAGE_BYTES

from pitr.backup_journal import JOURNAL_BYTES_MAX, JournalReader, JournalWriter
from pitr.datakeys import DataKeys
from pitr.errors import KeyMissing, MalformedValue, NoGoodCopy, NotAuthentic
from pitr.layout import ArchiveId, envelope_key, manifest_key
from pitr.pipeline.keys import content_key
from pitr.pipeline.sign import Signer
from pitr.postgres.summaries import ChangedPart
from pitr.restore_files import ChainLink

NOISE = random.Random(17)
LARGE = NOISE.randbytes(6 * MIB + 8192)
EVEN = NOISE.randbytes(MIB) + bytes(MIB) + NOISE.randbytes(MIB)


@pytest.fixture
def it(tmp_path: Path) -> Attempts:
    """Files of which one lies in several packs, and one worker: what is stored when is always the same."""
    it = Attempts(tmp_path, workers=1, pack_bytes=MIB)
    it.write("large", LARGE)
    for number in range(8):
        it.write(f"small{number}", NOISE.randbytes(300_000))
    it.write("empty", b"")
    it.write("zeros", bytes(2 * MIB))
    it.write("even", EVEN)
    return it


def finish(it: Attempts) -> ChainLink:
    """Take the backup, and see that it holds what there is."""
    it.store.calls.clear()
    link = it.attempt()
    assert it.restored([link], f"restored-{it.now:%H%M}") == it.contents()
    assert it.journal_paths() == []
    return link


def resumed(link: ChainLink) -> list[str]:
    return [pack.key for pack in link.manifest.packs if pack.key_id is not None]


def test_a_file_that_was_sent_in_part_goes_on_behind_its_packs(it: Attempts) -> None:
    # Each holds two MiB.
    it.fail(2)
    (journal,) = it.journal_paths()
    link = finish(it)
    assert journal.name.startswith(link.manifest.backup)
    assert len(resumed(link)) == 2
    # The rest of the large file is in its old part; what else there is in a new one.
    places = [key.rpartition("/pack-")[2][:-9] for key in it.packs_put()]
    assert places[:2] == ["0001-000002", "0001-000003"]
    assert {place[:5] for place in places[2:]} == {"0002-"}
    assert "resuming" in it.notes[0]
    assert "not sent again" in it.notes[-1]


def test_changed_bytes_are_sent_again_though_size_and_time_are_as_they_were(it: Attempts) -> None:
    it.fail(100)
    it.write("large", LARGE[:-1] + bytes([LARGE[-1] ^ 1]))
    it.write("small3", bytes([1]) + it.contents()["small3"][1:])
    link = finish(it)
    put = sum(pack.size_bytes for pack in link.manifest.packs if pack.key_id is None)
    assert len(LARGE) < put < len(LARGE) + 400_000
    # Nothing of the large file is in use: its packs are not kept for it, but for the one it shared.
    assert 0 < len(resumed(link)) < 5


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda it: it.write("large", LARGE[: 2 * MIB]), id="truncated"),
        pytest.param(lambda it: it.write("large", LARGE + b"x" * 8192), id="grown"),
        # All that is stored of it is the same, and small files lie behind it in its last pack.
        pytest.param(lambda it: it.write("even", EVEN + LARGE[:MIB]), id="grown by whole frames"),
        pytest.param(lambda it: it.write("even", EVEN + bytes(MIB)), id="grown by zeros"),
        pytest.param(lambda it: it.write("even", EVEN[:MIB] + EVEN[-MIB:]), id="zeros gone"),
        pytest.param(lambda it: it.write("even", bytes(MIB) + EVEN[:MIB] + EVEN[-MIB:]), id="zeros moved"),
        pytest.param(lambda it: it.write("large", b""), id="emptied"),
        pytest.param(lambda it: it.write("large", bytes(len(LARGE))), id="zeros"),
        pytest.param(lambda it: it.write("large", LARGE[:8192]), id="small now"),
        pytest.param(lambda it: (it.data / "base/5/large").unlink(), id="dropped"),
        pytest.param(lambda it: (it.data / "base/5/small0").unlink(), id="small one dropped"),
        pytest.param(lambda it: it.write("zeros", LARGE[: 2 * MIB]), id="zeros filled"),
        pytest.param(lambda it: it.write("more", LARGE[: 2 * MIB]), id="new"),
    ],
)
@pytest.mark.parametrize("packs", [3, 7, 100])
def test_files_that_change_in_between(it: Attempts, packs: int, change: Callable[[Attempts], object]) -> None:
    it.fail(packs)
    change(it)
    finish(it)


def test_a_backup_that_is_interrupted_again_goes_on_with_what_both_attempts_stored(it: Attempts) -> None:
    it.fail(3)
    for number in range(8, 16):
        it.write(f"small{number}", NOISE.randbytes(300_000))
    # The packs of new files, and those behind the large one.
    it.fail(3)
    assert len(it.journal_paths()) == 2
    link = finish(it)
    keys = {pack.key_id for pack in link.manifest.packs if pack.key_id is not None}
    assert len(keys) == 2
    assert len(link.manifest.key_ids) == 3
    assert len(resumed(link)) >= 5


def test_a_pack_that_was_lost_in_the_store_is_sent_again(it: Attempts) -> None:
    it.fail(100)
    packs = sorted(info.key for info in it.store.list_objects("backups/") if "/pack-" in info.key)
    it.store.delete(packs[2])
    body = it.store.get(packs[-1])
    it.store.delete(packs[-1])
    it.store.put(packs[-1], body[:-1])
    link = finish(it)
    assert not {packs[2], packs[-1]} & set(resumed(link))
    # The file goes on behind the pack before the lost one.
    assert packs[1] in resumed(link)


def test_packs_whose_key_is_lost_are_not_taken_over(it: Attempts) -> None:
    it.fail(100)
    for info in list(it.store.list_objects("envelopes/")):
        it.store.delete(info.key)
    link = finish(it)
    assert resumed(link) == []
    assert any("data key is not in the store" in note for note in it.notes)


def cut(journal: Path, _it: Attempts) -> None:
    journal.write_bytes(journal.read_bytes()[:-100])


def flip(journal: Path, _it: Attempts) -> None:
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)


def flip_head(journal: Path, _it: Attempts) -> None:
    content = bytearray(journal.read_bytes())
    content[20] ^= 1
    journal.write_bytes(content)


def drop_a_line(journal: Path, _it: Attempts) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2] + lines[3:]))


def repeat_a_line(journal: Path, _it: Attempts) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[-1]]))


def replace_by(content: bytes) -> Callable[[Path, Attempts], None]:
    return lambda journal, _it: journal.write_bytes(content) and None


def grow(journal: Path, _it: Attempts) -> None:
    os.truncate(journal, JOURNAL_BYTES_MAX * 2)


def rename(journal: Path, _it: Attempts) -> None:
    journal.rename(journal.with_name(journal.name.replace("full", "incr")))


def age(_journal: Path, it: Attempts) -> None:
    it.now += timedelta(days=1, minutes=1)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_head, "damaged, or not of this host"),
        (replace_by(b""), "damaged, or not of this host"),
        (replace_by(b"\n"), "damaged, or not of this host"),
        (replace_by(b"\0" * 100_000), "damaged, or not of this host"),
        (replace_by(b"{" * 100_000 + b"\n"), "damaged, or not of this host"),
        (replace_by(random.Random(1).randbytes(1_000_000)), "damaged, or not of this host"),
        (grow, "larger than any journal"),
        (rename, "is the journal of"),
        (age, "its last pack was stored at"),
    ],
    ids=["head", "empty", "a line", "nulls", "braces", "garbage", "huge", "renamed", "old"],
)
def test_a_journal_that_is_of_no_use_is_dropped_and_said(
    it: Attempts, harm: Callable[[Path, Attempts], None], reason: str
) -> None:
    it.fail(100)
    harm(it.journal_paths()[0], it)
    link = finish(it)
    assert resumed(link) == []
    assert any(reason in note for note in it.notes), it.notes


@pytest.mark.parametrize(("days", "is_resumed"), [(9, True), (11, False)])
def test_an_attempt_that_was_begun_a_month_ago_is_begun_anew(
    it: Attempts, days: int, is_resumed: bool
) -> None:
    """However lately it stored its last pack: an expiry may take it soon."""

    def pass_time() -> None:
        it.now += timedelta(days=days)

    it.store.on_pack = pass_time
    it.fail(3)
    it.store.on_pack = None
    assert bool(resumed(finish(it))) == is_resumed
    assert any("begun more than 30 days ago" in note for note in it.notes) != is_resumed, it.notes


@pytest.mark.parametrize("harm", [cut, flip, drop_a_line, repeat_a_line])
def test_a_journal_counts_up_to_its_first_bad_line(
    it: Attempts, harm: Callable[[Path, Attempts], None]
) -> None:
    it.fail(100)
    harm(it.journal_paths()[0], it)
    link = finish(it)
    assert resumed(link)
    assert any("is damaged" in note for note in it.notes) == (harm is not cut)


def test_a_journal_of_another_host_is_dropped(it: Attempts) -> None:
    it.fail(100)
    (journal,) = it.journal_paths()
    it.house.signer = Signer.generate(os.urandom)
    # The archive's record does not name the new one, so the reader at its end refuses the envelope.
    with pytest.raises(NoGoodCopy):
        it.attempt()
    assert any("not of this host" in note for note in it.notes)
    assert not journal.exists()


def test_a_journal_of_another_archive_is_dropped(it: Attempts) -> None:
    it.fail(100)
    (journal,) = it.journal_paths()
    key = content_key(it.house.signer, it.house.repository.repository_id)
    reader = JournalReader(journal, key)
    head, packs = reader.head, list(reader.packs())
    reader.close()
    journal.unlink()
    other = ArchiveId(head.archive.system_identifier, head.archive.epoch + 1)
    writer = JournalWriter(journal, replace(head, archive=other), key, note=it.notes.append)
    for pack in packs:
        writer.add(pack)
    writer.close()
    assert resumed(finish(it)) == []
    assert any("it was of another archive" in note for note in it.notes)


def test_a_backup_that_has_a_manifest_is_not_gone_on_with(it: Attempts) -> None:
    it.fail(100)
    (journal,) = it.journal_paths()
    backup = journal.name.partition(".")[0]
    it.store.put(manifest_key(it.house.archive, backup), b"what another process put")
    it.store.calls.clear()
    assert resumed(it.attempt()) == []
    assert any("it is complete" in note for note in it.notes)


def test_without_a_place_for_notes_the_backup_goes_on(it: Attempts) -> None:
    it.journals.write_bytes(b"a file where the folder should be")
    link = it.attempt()
    assert it.restored([link], "restored") == it.contents()
    assert any("could not be resumed" in note for note in it.notes)


def pages_of(content: bytes, *blocks: int, parent_blocks: int | None = None) -> ChangedPart:
    count = len(content) // PAGE_BYTES if parent_blocks is None else parent_blocks
    return ChangedPart(np.array(blocks, np.uint32), count)


def test_an_incremental_backup_is_gone_on_with(it: Attempts) -> None:
    full = finish(it)
    changed = bytearray(LARGE)
    blocks = [*range(40), *range(300, 500), 700]
    for block in blocks:
        changed[block * PAGE_BYTES : (block + 1) * PAGE_BYTES] = NOISE.randbytes(PAGE_BYTES)
    it.write("large", bytes(changed))
    plans = {
        f"base/5/{name}".encode(): pages_of(content)
        for name, content in it.contents().items()
        if len(content) >= PAGE_BYTES and not name.startswith("small")
    }
    plans[b"base/5/large"] = pages_of(LARGE, *blocks)
    it.fail(100, parent=full.manifest, plans=plans)
    # More has changed since, in another file.
    it.write("small1", NOISE.randbytes(300_000))
    it.store.calls.clear()
    link = it.attempt(parent=full.manifest, plans=plans)
    assert it.restored([link, full], "restored") == it.contents()
    assert len(resumed(link)) >= 2
    assert sum(pack.size_bytes for pack in link.manifest.packs if pack.key_id is None) < 400_000


def test_an_incremental_backup_of_which_more_has_changed_since_has_all_of_it(it: Attempts) -> None:
    full = finish(it)
    changed = bytearray(LARGE)
    changed[: 8 * PAGE_BYTES] = NOISE.randbytes(8 * PAGE_BYTES)
    it.write("large", bytes(changed))
    plan = {b"base/5/large": pages_of(LARGE, *range(8))}
    it.fail(100, parent=full.manifest, plans=plan)
    changed[100 * PAGE_BYTES : 101 * PAGE_BYTES] = NOISE.randbytes(PAGE_BYTES)
    it.write("large", bytes(changed))
    link = it.attempt(parent=full.manifest, plans={b"base/5/large": pages_of(LARGE, *range(8), 100)})
    assert it.restored([link, full], "restored") == it.contents()


def test_an_incremental_backup_on_another_parent_begins_anew(it: Attempts) -> None:
    full = finish(it)
    it.fail(100, parent=full.manifest)
    other = it.attempt()
    # The full one left the journal of the other kind alone.
    assert [path.name[17:21] for path in it.journal_paths()] == ["incr"]
    link = it.attempt(parent=other.manifest)
    assert resumed(link) == []
    assert any("another backup was begun since" in note for note in it.notes)


def test_a_reader_without_the_old_key_refuses_the_pack(it: Attempts) -> None:
    it.fail(100)
    link = finish(it)
    with pytest.raises(KeyMissing):
        it.restored([replace(link, other_keys={})], "refused")


def test_a_pack_that_names_a_key_of_no_envelope_is_refused(it: Attempts) -> None:
    it.fail(100)
    link = finish(it)
    manifest = link.manifest
    old = next(pack.key_id for pack in manifest.packs if pack.key_id is not None)
    it.store.delete(envelope_key(manifest.archive, old))
    with pytest.raises(NotAuthentic, match="is in no region"):
        ChainLink.open(manifest, DataKeys(it.house.repository, it.house.identity))


def test_two_packs_for_one_place_are_refused(it: Attempts) -> None:
    it.fail(100)
    link = finish(it)
    first = link.manifest.packs[0]
    twin = replace(first, key=f"{first.key[:-8]}01234567")
    doubled = replace(link, manifest=replace(link.manifest, packs=(*link.manifest.packs, twin)))
    with pytest.raises(MalformedValue, match="twice"):
        it.restored([doubled], "refused")
