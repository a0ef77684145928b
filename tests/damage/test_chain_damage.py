"""A chain of backups in which something is wrong is refused, or read from another region; never guessed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fix_chain import (
    MIB,
    PAGE_BYTES,
    STATUS,
    ChainMaker,
    LayerMaker,
    noise_page,
    page,
    real_page,
    restore_chain,
)
from fix_stores import FaultyStore

from pitr.catalogue.backup_record import BackupManifest, PageFinding, StoredObject
from pitr.errors import MalformedValue, NotAuthentic, PitrError
from pitr.pipeline.packs import IndexFile, IndexPack, iter_index
from pitr.restore_files import ChainLink
from pitr.restore_layer import Fetching, Layer
from storage.memory import MemoryStore
from storage.regions import Region
from storage.replicated import ReplicatedStore
from storage.store import CopyCheck

PATH = "base/5/16384"


def chain_of_three(middle: Callable[[LayerMaker], None]) -> ChainMaker:
    """Make a full backup of one page, ``middle`` on it, and a newest one that takes all from its parent."""
    chain = ChainMaker()
    full = chain.layer()
    full.add_whole(PATH, page(1))
    chain.add(full)
    layer = chain.layer()
    middle(layer)
    chain.add(layer)
    newest = chain.layer()
    newest.add_changed(PATH, [], [], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES)
    chain.add(newest)
    return chain


def unchanged(layer: LayerMaker) -> None:
    layer.add_changed(PATH, [], [], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES)


def test_the_chain_itself_is_good(tmp_path: Path) -> None:
    chain_of_three(unchanged).restore(tmp_path)
    assert (tmp_path / "root" / PATH).read_bytes() == page(1)


# --- what the indexes say ----------------------------------------------------------------------------------


def test_an_older_backup_is_no_substitute_for_what_the_parent_lacks(tmp_path: Path) -> None:
    chain = chain_of_three(lambda layer: layer.add_whole("base/5/2", page(2)))
    with pytest.raises(NotAuthentic, match=f"-00000001 lacks {PATH}"):
        chain.restore(tmp_path)


def test_a_full_backup_that_lacks_the_file_is_named(tmp_path: Path) -> None:
    chain = ChainMaker()
    full = chain.layer()
    full.add_whole("base/5/2", page(2))
    chain.add(full)
    newest = chain.layer()
    unchanged(newest)
    chain.add(newest)
    with pytest.raises(NotAuthentic, match=f"-00000000 lacks {PATH}"):
        chain.restore(tmp_path)


def test_a_full_backup_with_a_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    chain = ChainMaker()
    full = chain.layer()
    unchanged(full)
    chain.add(full)
    with pytest.raises(NotAuthentic, match="lacks"):
        chain.restore(tmp_path)


@pytest.mark.parametrize("is_whole", [False, True], ids=["in part", "whole"])
def test_a_file_that_the_parent_lists_twice_is_refused(tmp_path: Path, is_whole: bool) -> None:
    def twice(layer: LayerMaker) -> None:
        for part in (1, 2):
            if is_whole:
                layer.add_whole(PATH, page(part), part)
            else:
                layer.add_changed(PATH, [], [], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES, part=part)

    with pytest.raises(MalformedValue, match="twice"):
        chain_of_three(twice).restore(tmp_path)


def test_a_file_that_the_newest_backup_lists_twice_is_refused(tmp_path: Path) -> None:
    chain = chain_of_three(unchanged)
    newest = chain.layer()
    for part in (1, 2):
        newest.add_changed(PATH, [], [], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES, part=part)
    chain.add(newest)
    with pytest.raises(MalformedValue, match="twice"):
        chain.restore(tmp_path)


def test_more_of_the_parent_than_the_file_is_long_is_refused(tmp_path: Path) -> None:
    def longer(layer: LayerMaker) -> None:
        layer.add_changed(PATH, [], [], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES + 1)

    with pytest.raises(MalformedValue, match="longer than it says"):
        chain_of_three(longer).restore(tmp_path)


def test_a_parent_that_is_shorter_gives_what_it_has(tmp_path: Path) -> None:
    chain = ChainMaker()
    full = chain.layer()
    full.add_whole(PATH, page(1))
    chain.add(full)
    newest = chain.layer()
    newest.add_changed(PATH, [3], [page(4)], size_bytes=4 * PAGE_BYTES, parent_bytes=4 * PAGE_BYTES)
    chain.add(newest)
    chain.restore(tmp_path)
    assert (tmp_path / "root" / PATH).read_bytes() == page(1) + bytes(2 * PAGE_BYTES) + page(4)


# --- which backups, and with which keys --------------------------------------------------------------------


@pytest.mark.parametrize("order", [[2, 0, 1], [2, 1], [2, 0], [1, 2, 0], [2], [2, 1, 1, 0]], ids=str)
def test_backups_that_are_not_built_on_each_other_are_no_chain(tmp_path: Path, order: list[int]) -> None:
    chain = chain_of_three(
        lambda layer: layer.add_changed(PATH, [0], [page(2)], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES)
    )
    with pytest.raises(MalformedValue, match="not built on each other"):
        restore_chain(chain.store, [chain.links[number] for number in order], tmp_path)


def test_a_parent_under_the_name_of_another_does_not_open(tmp_path: Path) -> None:
    """The signed names are right, and the bytes below them are those of the other backup."""
    chain = chain_of_three(
        lambda layer: layer.add_changed(PATH, [0], [page(2)], size_bytes=PAGE_BYTES, parent_bytes=PAGE_BYTES)
    )
    full, middle, newest = chain.links
    store = MemoryStore()
    names = {full.manifest.backup: middle.manifest.backup, middle.manifest.backup: full.manifest.backup}
    for info in chain.store.list_objects(""):
        own = info.key.split("/")[3]
        store.put(info.key.replace(own, names.get(own, own)), chain.store.get(info.key))

    def posing(link: ChainLink, other: BackupManifest) -> ChainLink:
        def renamed(stored: tuple[StoredObject, ...]) -> tuple[StoredObject, ...]:
            return tuple(
                replace(each, key=each.key.replace(other.backup, link.manifest.backup)) for each in stored
            )

        manifest = replace(
            link.manifest, files=other.files, packs=renamed(other.packs), indexes=renamed(other.indexes)
        )
        return ChainLink(manifest, link.data_key)

    posed = [newest, posing(middle, full.manifest), posing(full, middle.manifest)]
    with pytest.raises(NotAuthentic):
        restore_chain(store, posed, tmp_path)


def test_a_parent_is_not_opened_with_another_key(tmp_path: Path) -> None:
    chain = chain_of_three(unchanged)
    full, middle, newest = chain.links
    with pytest.raises(NotAuthentic):
        restore_chain(chain.store, [newest, ChainLink(middle.manifest, full.data_key), full], tmp_path)


# --- frames that are read by range -------------------------------------------------------------------------


def little_of_much() -> tuple[ChainMaker, str, int]:
    """Make a chain that wants one frame of a large pack; return the pack's key and where that frame lies."""
    chain = ChainMaker()
    full = chain.layer(pack_bytes=16 * MIB)
    full.add_whole(PATH, b"".join(map(noise_page, range(1, 1025))))
    link = chain.add(full)
    newest = chain.layer(pack_bytes=16 * MIB)
    # All but block 520.
    blocks = [block for block in range(1024) if block != 520]
    newest.add_changed(
        PATH,
        blocks,
        [page(block + 1) for block in blocks],
        size_bytes=1024 * PAGE_BYTES,
        parent_bytes=1024 * PAGE_BYTES,
    )
    chain.add(newest)
    (stored,) = link.manifest.packs
    frames = next(line.frames for line in lines_of(chain.store, link) if isinstance(line, IndexPack))
    return chain, stored.key, frames[520 // 128].offset


def lines_of(store: MemoryStore, link: ChainLink) -> list[object]:
    layer = Layer(link.manifest, link.data_key, Fetching(store, 0.05, threading.Event(), lambda _bytes: None))
    return [
        line
        for part, (indexes, _packs) in layer.parts().items()
        for line in iter_index(layer.open_index(part, stored) for stored in indexes)
    ]


def flipped(store: MemoryStore, key: str, at: int) -> MemoryStore:
    """Return a copy of the store in which one bit of an object differs."""
    copy = MemoryStore()
    for info in store.list_objects(""):
        body = bytearray(store.get(info.key))
        if info.key == key:
            body[at] ^= 1
        copy.put(info.key, bytes(body))
    return copy


class Ranges(FaultyStore):
    """Counts the bytes that are read, and how."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.whole: list[str] = []
        self.ranges: list[tuple[str, int, int]] = []

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        self.whole.append(key)
        return super().get(key, check=check)

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        self.ranges.append((key, start, length))
        return super().get_range(key, start, length, check=check)


def test_only_the_frame_that_is_wanted_is_read(tmp_path: Path) -> None:
    chain, key, _offset = little_of_much()
    store = Ranges(chain.store)
    done, _listed = chain.restore(tmp_path, store)
    assert key not in store.whole
    assert {found for found, _start, _length in store.ranges} == {key}
    assert sum(length for _key, _start, length in store.ranges) < 1.1 * MIB
    assert done.size_bytes == 1024 * PAGE_BYTES
    restored = (tmp_path / "root" / PATH).read_bytes()
    assert restored[520 * PAGE_BYTES : 521 * PAGE_BYTES] == noise_page(521)


def test_a_pack_of_which_nothing_is_wanted_is_not_read(tmp_path: Path) -> None:
    chain = ChainMaker()
    full = chain.layer(pack_bytes=1)
    for number in (1, 2):
        full.add_whole(f"base/5/{number}", b"".join(noise_page(number * 1000 + n) for n in range(300)))
    packs = chain.add(full).manifest.packs
    newest = chain.layer()
    newest.add_whole("base/5/1", page(7))
    newest.add_changed("base/5/2", [], [], size_bytes=300 * PAGE_BYTES, parent_bytes=300 * PAGE_BYTES)
    chain.add(newest)
    store = Ranges(chain.store)
    chain.restore(tmp_path, store)
    read = set(store.whole) | {key for key, _start, _length in store.ranges}
    assert len(packs) == 3
    assert packs[0].key not in read
    assert packs[-1].key in read


# The header's magic, file id, commitment and key id; the frame's length (which is not read), bytes and tag.
_PLACES = {"magic": 0, "file id": 10, "commitment": 45, "key id": 80}


@pytest.mark.parametrize("place", [*_PLACES, "frame"])
def test_a_flipped_bit_in_one_region_is_read_from_another_and_in_all_refused(
    tmp_path: Path, place: str
) -> None:
    chain, key, frame_offset = little_of_much()
    bad = flipped(chain.store, key, _PLACES.get(place, frame_offset + 100))
    regions = [Region("near", bad), Region("far", chain.store)]
    with contextlib.closing(ReplicatedStore(regions, quorum=2)) as store:
        chain.restore(tmp_path / "good", store)
    expected = noise_page(521)
    restored = (tmp_path / "good/root" / PATH).read_bytes()
    assert restored[520 * PAGE_BYTES : 521 * PAGE_BYTES] == expected
    regions = [Region("near", bad), Region("far", bad)]
    with (
        contextlib.closing(ReplicatedStore(regions, quorum=2)) as store,
        pytest.raises(NotAuthentic, match="no region has a good copy"),
    ):
        chain.restore(tmp_path / "bad", store)


def test_bits_outside_the_wanted_frame_do_not_matter(tmp_path: Path) -> None:
    chain, key, frame_offset = little_of_much()
    chain.restore(tmp_path, flipped(chain.store, key, frame_offset - 1000))


class Unchecking(MemoryStore):
    """A store that forgets to have the bytes looked at."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__()
        for info in inner.list_objects(""):
            self.put(info.key, inner.get(info.key))

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        return super().get_range(key, start, length)


def test_bytes_that_nobody_looked_at_are_not_taken_for_zeros(tmp_path: Path) -> None:
    chain, _key, _offset = little_of_much()
    with pytest.raises(PitrError):
        chain.restore(tmp_path, Unchecking(chain.store))


# --- what pages say of their place -------------------------------------------------------------------------


def pages_chain(full: list[bytes], changed: dict[int, bytes], **newest_fields: object) -> ChainMaker:
    """Make a full backup of one file and an incremental one, both of a cluster with checksums."""
    chain = ChainMaker()
    layer = chain.layer(checksums=True)
    layer.add_whole(PATH, b"".join(full))
    chain.add(layer)
    newest = chain.layer(checksums=True)
    size = len(full) * PAGE_BYTES
    newest.add_changed(PATH, list(changed), list(changed.values()), size_bytes=size, parent_bytes=size)
    chain.links.append(newest.finish(**newest_fields))
    return chain


def restore_pages(chain: ChainMaker, folder: Path) -> bytes:
    chain.restore(folder)
    return (folder / "root" / PATH).read_bytes()


OLD, NEW = 0x1000, 0x9000000
GOOD = [real_page(block, OLD) for block in range(4)]


def torn(block: int, lsn: int) -> bytes:
    """Return a page whose first half is newer than its second."""
    return real_page(block, lsn, fill=7)[: PAGE_BYTES // 2] + real_page(block, lsn)[PAGE_BYTES // 2 :]


def test_good_pages_pass(tmp_path: Path) -> None:
    again = real_page(2, NEW, fill=3)
    assert restore_pages(pages_chain(GOOD, {2: again}), tmp_path) == b"".join([*GOOD[:2], again, GOOD[3]])


def test_a_page_at_a_wrong_block_is_refused_among_many_short_runs(tmp_path: Path) -> None:
    """Pages of short runs are judged many at a time; the wrong one is named all the same."""
    base = [real_page(block, OLD) for block in range(400)]
    changed = {block: real_page(block, OLD, fill=3) for block in range(0, 400, 2)}
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    again = restore_pages(pages_chain(base, changed), good)
    assert again == b"".join(changed.get(block, page) for block, page in enumerate(base))
    changed[380] = real_page(38, OLD, fill=3)
    with pytest.raises(NotAuthentic, match=f"block 380 of {PATH} is not the page that belongs there"):
        restore_pages(pages_chain(base, changed), bad)


@pytest.mark.parametrize("depth", ["newest", "parent"])
def test_a_page_at_a_wrong_block_is_refused(tmp_path: Path, depth: str) -> None:
    """Its bytes are what was read, every sum over them is right; only its own block number tells."""
    wrong = real_page(3, OLD)
    made = (
        pages_chain(GOOD, {2: wrong})
        if depth == "newest"
        else pages_chain([*GOOD[:2], wrong, GOOD[3]], {1: GOOD[1]})
    )
    with pytest.raises(NotAuthentic, match=f"block 2 of {PATH} is not the page that belongs there"):
        restore_pages(made, tmp_path)


def test_a_torn_page_of_the_newest_backup_is_mended_by_replay(tmp_path: Path) -> None:
    restore_pages(pages_chain(GOOD, {2: torn(2, NEW)}), tmp_path)


def test_a_torn_page_that_replay_does_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAuthentic, match="block 2"):
        restore_pages(pages_chain(GOOD, {2: torn(2, OLD)}), tmp_path)


def test_a_bad_page_that_the_backup_reported_is_restored_as_it_was_read(tmp_path: Path) -> None:
    finding = PageFinding(None, PATH, "main", 2, "bad on disk")
    made = pages_chain(GOOD, {2: torn(2, OLD)}, findings=(finding,))
    assert restore_pages(made, tmp_path)[2 * PAGE_BYTES : 3 * PAGE_BYTES] == torn(2, OLD)


def test_a_torn_page_of_the_parent_is_refused_unless_it_was_read_again(tmp_path: Path) -> None:
    """Whatever was written during the parent's backup counts as changed; so nobody needs its torn pages."""
    parent = [*GOOD[:2], torn(2, NEW), GOOD[3]]
    again = real_page(2, NEW, fill=3)
    restored = restore_pages(pages_chain(parent, {2: again}), tmp_path / "again")
    assert restored[2 * PAGE_BYTES : 3 * PAGE_BYTES] == again
    with pytest.raises(NotAuthentic, match="block 2"):
        restore_pages(pages_chain(parent, {1: GOOD[1]}), tmp_path / "not")


def test_a_partial_file_says_nothing_of_a_sum_that_nobody_made() -> None:
    chain = chain_of_three(unchanged)
    (line,) = [line for line in lines_of(chain.store, chain.links[-1]) if isinstance(line, IndexFile)]
    assert (line.crc32c, line.parent_bytes, line.mode) == (None, PAGE_BYTES, STATUS.mode)
