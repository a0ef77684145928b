"""Where the archive ends, found in the store alone: the chain decides, not the names."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from fix_stores import FaultyStore
from fix_wal_archive import REPOSITORY_ID, WalHouse, now

from pitr.archive_heads import HeadWriter, IndexWriter
from pitr.archive_intake import Intake
from pitr.archive_resume import Resumed, find_end, put_spooled
from pitr.archive_seal import PieceSealer, SealedPiece, Writer
from pitr.archive_values import DurableEnd
from pitr.catalogue.records import HistoryRecord
from pitr.catalogue.wal_records import PieceHeader, indexed
from pitr.errors import ArchiveDiverged, NameTaken
from pitr.layout import head_key, wal_index_key
from pitr.pipeline.keys import DataKey, content_key
from pitr.pipeline.sign import Signer
from pitr.spool import DirectorySpool
from pitr.verified import BAD_MAX
from pitr.wal.lsn import LSN
from pitr.wal.pacing import PUTS_MAX
from pitr.wal.pieces import PieceCutter, RunStart
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import StoreUnavailable

MIB = 1 << 20
SYSTEM = 7301234567890123456
START = LSN(16 * MIB)
ONE, TWO = TimelineId(1), TimelineId(2)


class Host:
    """The writing half without threads: it seals what it is given, and the test decides what is put."""

    def __init__(
        self, store: MemoryStore | FaultyStore | ReplicatedStore, signer: Signer | None = None
    ) -> None:
        self.house = WalHouse(store, SYSTEM)
        self.store = store
        signer = signer or self.house.signer
        self.attempts = 0
        self.writer = Writer(
            repository=REPOSITORY_ID,
            archive=self.house.archive,
            segment_bytes=MIB,
            signer=signer,
            content_key=content_key(signer, REPOSITORY_ID),
            random=self._random,
        )

    def _random(self, count: int) -> bytes:
        self.attempts += 1
        return self.attempts.to_bytes(count, "big")

    def intake(self, resumed: Resumed | None = None) -> Intake:
        end = None if resumed is None else resumed.end
        sealer = PieceSealer(
            self.writer,
            last_sequence=0 if end is None else end.piece_sequence,
            last_sha256=None if end is None else end.piece_sha256,
        )
        return Intake(self.writer, sealer, None if resumed is None else resumed.known)

    def seal(
        self, intake: Intake, begin: RunStart | None, content: bytes, piece_bytes: int, *, start: LSN = START
    ) -> list[SealedPiece]:
        """Seal ``content``; ``start`` is where it lies if it goes on with a run."""
        cutter = PieceCutter(segment_bytes=MIB, piece_bytes=piece_bytes, piece_age_s=1.0)
        run = begin or RunStart(ONE, LSN(start.offset // MIB * MIB), start, follows=True)
        cutter.begin(run)
        cutter.add(content, 0.0)
        cutter.close()
        pieces = []
        while (raw := cutter.take(0.0)) is not None:
            if raw.is_known:
                intake.compare(raw)
            else:
                pieces.append(intake.seal(raw, DataKey(bytes(32)), now()).piece)
        return pieces

    def put(self, *pieces: SealedPiece) -> None:
        for piece in pieces:
            self.store.put(str(piece.key), piece.body)

    def find(self) -> Resumed:
        return find_end(self.house.repository, self.house.archive)

    def head(self, spool: DirectorySpool, piece: SealedPiece, start: LSN = START) -> DurableEnd:
        """Write a head that ends with a piece."""
        resumed = self.find()
        end = _end_of(piece.header, piece.header_sha256, start)
        HeadWriter(self.writer, self.house.repository.puts, spool, resumed.head).write(end, [], now())
        return end


def _end_of(header: PieceHeader, digest: bytes, start: LSN) -> DurableEnd:
    return DurableEnd(header.timeline, start, header.end, header.sequence, digest)


def content(size_bytes: int, seed: int = 0) -> bytes:
    return b"".join(
        hashlib.sha256(f"{seed} {number}".encode()).digest() for number in range(size_bytes // 32 + 1)
    )[:size_bytes]


BEGIN = RunStart(ONE, START, None, follows=False)


def test_a_longer_piece_of_before_the_crash_does_not_cut_off_what_was_archived_since() -> None:
    """The spool was lost, the region that had it was away, and comes back before a head is signed."""
    host = Host(MemoryStore())
    host.put(*host.seal(host.intake(), BEGIN, content(1000), 1000))
    resumed = host.find()
    (left,) = host.seal(host.intake(resumed), None, content(4000), 3000, start=START + 1000)
    since = host.seal(host.intake(resumed), None, content(6000), 1000, start=START + 1000)
    assert since[0].header.sequence == left.header.sequence == 2
    host.put(left, *since)
    found = host.find()
    assert found.end == _end_of(since[-1].header, since[-1].header_sha256, START)


def test_an_empty_archive_has_no_end() -> None:
    assert Host(MemoryStore()).find() == Resumed(None, None, None, None, (), {})


def test_the_end_is_that_of_the_chain_without_any_head() -> None:
    host = Host(MemoryStore())
    pieces = host.seal(host.intake(), BEGIN, content(5000), 1000)
    host.put(*pieces)
    found = host.find()
    assert found.end == _end_of(pieces[-1].header, pieces[-1].header_sha256, START)
    assert found.known is not None
    assert [piece.sequence for piece in found.known.pieces] == [1, 2, 3, 4, 5]


def test_pieces_after_the_last_head_go_on_the_chain(tmp_path: Path) -> None:
    host, spool = Host(MemoryStore()), DirectorySpool(tmp_path, bytes_max=MIB)
    pieces = host.seal(host.intake(), BEGIN, content(5000), 1000)
    host.put(*pieces[:2])
    host.head(spool, pieces[1])
    host.put(*pieces[2:])
    found = host.find()
    assert found.head is not None
    assert found.head.head.piece_sequence == 2
    assert found.end == _end_of(pieces[-1].header, pieces[-1].header_sha256, START)
    spool.close()


def test_a_piece_after_one_that_is_missing_is_no_part_of_the_archive() -> None:
    host = Host(MemoryStore())
    pieces = host.seal(host.intake(), BEGIN, content(5000), 1000)
    host.put(pieces[0], pieces[1], pieces[3], pieces[4])
    found = host.find()
    assert found.end is not None
    assert (found.end.piece_sequence, found.end.end) == (2, START + 2000)


def test_what_another_predecessor_names_is_no_part_of_the_archive() -> None:
    host = Host(MemoryStore())
    ours = host.seal(host.intake(), BEGIN, content(3000), 1000)
    others = host.seal(host.intake(), BEGIN, content(3000, seed=1), 1000)
    host.put(*ours[:2], others[2])
    found = host.find()
    assert found.end == _end_of(ours[1].header, ours[1].header_sha256, START)
    host.put(ours[2])
    assert host.find().end == _end_of(ours[2].header, ours[2].header_sha256, START)


def test_of_two_pieces_with_one_predecessor_the_longer_one_counts() -> None:
    host = Host(MemoryStore())
    first = host.seal(host.intake(), BEGIN, content(1000), 1000)
    host.put(*first)
    short = host.seal(host.intake(host.find()), None, content(1500), 4000, start=START + 1000)
    long = host.seal(host.intake(host.find()), None, content(1900), 4000, start=START + 1000)
    assert short[0].header.sequence == long[0].header.sequence == 2
    host.put(*short, *long)
    assert host.find().end == _end_of(long[0].header, long[0].header_sha256, START)


def test_a_piece_that_another_key_signed_is_no_part_of_the_archive() -> None:
    store = MemoryStore()
    host, stranger = Host(store), Host(store, signer=Signer(bytes(32)))
    host.put(*host.seal(host.intake(), BEGIN, content(1000), 1000))
    found = host.find()
    # It knows where the archive ends, but not the host's keys, so it cannot compare either.
    intake = stranger.intake(replace(found, known=None))
    stranger.put(*stranger.seal(intake, None, content(2000), 1000, start=START + 1000))
    assert host.find() == found


def test_the_last_pieces_are_put_again_so_that_they_are_at_quorum() -> None:
    store = FaultyStore(MemoryStore())
    host = Host(store)
    pieces = host.seal(host.intake(), BEGIN, content(20_000), 1000)
    host.put(*pieces)
    store.calls.clear()
    host.find()
    put = [key for operation, key in store.calls if operation == "put"]
    # As many as any daemon may have had on their way: the one that was killed was perhaps set otherwise.
    assert put == [str(piece.key) for piece in pieces[-PUTS_MAX:]]
    store.fail(StoreUnavailable("down"), "put")
    with pytest.raises(StoreUnavailable):
        host.find()


@pytest.mark.parametrize("has_history", [True, False])
def test_a_timeline_switch_joins_only_with_its_history(has_history: bool) -> None:
    host = Host(MemoryStore())
    intake = host.intake()
    first = host.seal(intake, BEGIN, content(3000), 1000)
    second = host.seal(intake, RunStart(TWO, START, None, follows=True), content(4000), 1000)
    if has_history:
        history = f"1\t{START + 3000}\tno recovery target specified\n".encode()
        host.house.repository.put_history(
            HistoryRecord(REPOSITORY_ID, host.house.archive, TWO, history), host.house.signer
        )
    host.put(*first, *second)
    found = host.find()
    assert found.end is not None
    assert (found.end.timeline, found.end.end) == (TWO, START + 4000)
    assert found.left == ({ONE: START + 3000} if has_history else {})
    # Without its history a timeline is a stretch of its own; both begin at one LSN here.
    assert found.end.start == START
    later = host.seal(host.intake(found), RunStart(TWO, START + MIB, None, follows=False), content(10), 10)
    host.put(*later)
    moved = host.find().end
    assert moved is not None
    assert moved.start == START + MIB


def test_what_is_spooled_is_put_first_and_then_forgotten(tmp_path: Path) -> None:
    host, spool = Host(MemoryStore()), DirectorySpool(tmp_path, bytes_max=MIB)
    pieces = host.seal(host.intake(), BEGIN, content(3000), 1000)
    host.put(pieces[0])
    for piece in pieces:
        spool.add(str(piece.key), piece.body, piece.sha256)
    told: list[str] = []
    put_spooled(host.house.repository, spool, told.append)
    assert told == [str(piece.key) for piece in pieces]
    assert not list(spool.objects())
    assert host.find().end == _end_of(pieces[-1].header, pieces[-1].header_sha256, START)
    spool.close()


def test_a_spooled_head_that_another_writer_has_overtaken_stops_the_daemon(tmp_path: Path) -> None:
    host = Host(MemoryStore())
    spool, other = (DirectorySpool(tmp_path / name, bytes_max=MIB) for name in ("spool", "other"))
    (piece,) = host.seal(host.intake(), BEGIN, content(1000), 1000)
    host.put(piece)
    key = head_key(host.house.archive, 1)
    spool.add(key, b"ours", hashlib.sha256(b"ours").digest())
    host.head(other, piece)
    with pytest.raises(ArchiveDiverged, match="another writer"):
        put_spooled(host.house.repository, spool, print)
    spool.close()
    other.close()


def test_what_lies_under_a_spooled_name_and_nobody_signed_is_told_as_that(tmp_path: Path) -> None:
    host, spool = Host(MemoryStore()), DirectorySpool(tmp_path, bytes_max=MIB)
    (piece,) = host.seal(host.intake(), BEGIN, content(1000), 1000)
    spool.add(str(piece.key), piece.body, piece.sha256)
    host.store.put(str(piece.key), piece.body[:-1])
    with pytest.raises(NameTaken, match="too few regions can take wal/"):
        put_spooled(host.house.repository, spool, print)
    host.store.delete(str(piece.key))
    put_spooled(host.house.repository, spool, print)
    assert host.store.get(str(piece.key)) == piece.body
    spool.close()


class Regions:
    """Three regions at a quorum of two, as a daemon has them."""

    def __init__(self, folder: Path) -> None:
        self.stores = {name: FaultyStore(MemoryStore()) for name in "abc"}
        self.queue = RepairQueue(folder / "repair")
        regions = [Region(name, store) for name, store in self.stores.items()]
        self.store = ReplicatedStore(regions, quorum=2, queue=self.queue)

    def __enter__(self) -> Regions:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        self.queue.close()


def test_a_bit_that_flipped_in_one_region_is_not_put_into_the_others(tmp_path: Path) -> None:
    """A start puts the last pieces again: what it puts is what was signed, whoever is read from first."""
    with Regions(tmp_path) as regions:
        host = Host(regions.store)
        (piece,) = host.seal(host.intake(), BEGIN, content(1000), 1000)
        key, damaged = str(piece.key), piece.body[:-1] + bytes([piece.body[-1] ^ 1])
        regions.stores["a"].inner.put(key, damaged)
        regions.stores["b"].inner.put(key, piece.body)
        assert host.find().end == _end_of(piece.header, piece.header_sha256, START)
        assert regions.stores["a"].inner.get(key) == damaged
        assert [regions.stores[name].inner.get(key) for name in "bc"] == [piece.body, piece.body]


def test_indexes_that_nobody_signed_keep_no_daemon_from_starting(tmp_path: Path) -> None:
    host = Host(MemoryStore())
    pieces = host.seal(host.intake(), BEGIN, content(3000), 1000)
    host.put(*pieces)
    index = IndexWriter(host.writer, host.house.repository.puts, None)
    for piece in pieces[:2]:
        index.add_piece(indexed(piece.key, piece.header, piece.header_sha256))
    index.close()
    index.put_pending()
    signed = host.find().index_sha256
    assert signed is not None
    for number in range(100):
        # Beyond the end, and of a range that the end allows.
        host.store.put(wal_index_key(host.house.archive, 10, 10 + number), b"junk")
    host.store.put(wal_index_key(host.house.archive, 2, 3), b"junk")
    assert host.find().index_sha256 == signed


def test_wal_that_nobody_signed_keeps_no_daemon_from_starting() -> None:
    """The timeline's first object tells how large segments are; one region alone may list any before it."""
    host = Host(MemoryStore())
    pieces = host.seal(host.intake(), BEGIN, content(5000), 1000)
    host.put(*pieces)
    for number in range(BAD_MAX):
        host.store.put(f"wal/{host.house.archive}/00000001/000000010000000000000001/s-{number:08x}", b"junk")
    found = host.find()
    assert found.end == _end_of(pieces[-1].header, pieces[-1].header_sha256, START)
    assert found.known is not None
    assert [piece.sequence for piece in found.known.pieces] == [1, 2, 3, 4, 5]


def test_wal_that_comes_again_is_compared_and_goes_on(tmp_path: Path) -> None:
    host = Host(MemoryStore())
    wal = content(5000)
    host.put(*host.seal(host.intake(), BEGIN, wal[:3300], 1000))
    for piece_bytes in (1, 700, 5000):
        intake = host.intake(host.find())
        (piece,) = host.seal(intake, None, wal[:4000], piece_bytes, start=START + 3300)[:1]
        assert (piece.header.sequence, piece.header.start) == (5, START + 3300)


@pytest.mark.parametrize("offset", [0, 999, 1000, 3299])
def test_wal_that_comes_again_differently_stops_the_daemon(offset: int) -> None:
    host = Host(MemoryStore())
    wal = bytearray(content(5000))
    host.put(*host.seal(host.intake(), BEGIN, bytes(wal[:3300]), 1000))
    intake = host.intake(host.find())
    wal[offset] ^= 1
    with pytest.raises(ArchiveDiverged, match="differs"):
        host.seal(intake, None, bytes(wal), 5000, start=START + 3300)


def test_a_segment_that_a_restart_interrupted_is_whole_and_names_all_its_pieces() -> None:
    host = Host(MemoryStore())
    wal = content(MIB)
    begun = host.seal(host.intake(), BEGIN, wal[:700_000], 300_000)
    host.put(*begun)
    cutter = PieceCutter(segment_bytes=MIB, piece_bytes=400_000, piece_age_s=1.0)
    cutter.begin(RunStart(ONE, START, START + 700_000, follows=True))
    cutter.add(wal, 0.0)
    intake, finished = host.intake(host.find()), None
    digests = [piece.header_sha256 for piece in begun]
    while (raw := cutter.take(1.0)) is not None:
        if raw.is_known:
            intake.compare(raw)
        else:
            sealed = intake.seal(raw, DataKey(bytes(32)), now())
            digests.append(sealed.piece.header_sha256)
            finished = sealed.finishes
    assert finished is not None
    segment = finished.seal(DataKey(bytes(32)))
    assert (segment.header.first_piece, segment.header.last_piece) == (1, len(digests))
    assert segment.header.pieces_sha256 == hashlib.sha256(b"".join(digests)).digest()
    host.store.put(str(segment.key), segment.body)

    class Keys:
        def get(self, archive: object, key_id: bytes) -> DataKey:
            return DataKey(bytes(32))

    assert host.house.repository.read_wal(segment.key, Keys()) == wal
    assert replace(segment.header, points=()) == host.house.repository.read_header(segment.key)


def test_a_segment_that_begins_in_its_middle_is_left_in_pieces() -> None:
    host = Host(MemoryStore())
    intake = host.intake()
    cutter = PieceCutter(segment_bytes=MIB, piece_bytes=MIB, piece_age_s=1.0)
    # The daemon knows that WAL was archived here, but not its pieces: too many, or lost.
    cutter.begin(RunStart(ONE, START, START + 500_000, follows=True))
    cutter.add(content(MIB), 0.0)
    lefts = []
    while (raw := cutter.take(1.0)) is not None:
        if raw.is_known:
            intake.compare(raw)
        else:
            sealed = intake.seal(raw, DataKey(bytes(32)), now())
            assert sealed.finishes is None
            lefts.append(sealed.leaves_in_pieces)
    assert [str(left.name) for left in lefts if left] == ["000000010000000000000010"]
