"""WAL that makes a tablespace in a place which is not the cluster's is never delivered, whoever asks."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from fix_wal_pages import WalWriter, main_data
from fix_wal_path import ARCHIVE, SEGMENT_BYTES, SYSTEM, WalShelf, lsn_in, segment_name, span

from pitr.fetch_desk import Desk, fetch_script
from pitr.layout import SegmentKey
from pitr.prefetch import Prefetcher
from pitr.replica import seed_replica
from pitr.space_guard import SpaceRefused
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_BYTES
from pitr.wal_fetch import WalFetchRequest, fetch_wal
from pitr.wal_plan_file import ReplayedWal, WalPlanHeader, read_header, write_plan
from pitr.wal_sources import find_segments, lay_path
from storage.store import StoreRefused

FIRST, LAST = 3, 8
OID = 16500


class Site:
    """A cluster that recovers from a shelf; in ``number`` WAL makes a tablespace in ``space``."""

    def __init__(self, folder: Path, *, number: int, is_across: bool = False) -> None:
        self.shelf, self.number = WalShelf(), number
        self.space, self.data = folder / "space", folder / "data"
        (self.data / "pg_wal").mkdir(parents=True)
        (self.data / "pg_tblspc").mkdir()
        self.space.mkdir()
        (self.space / "PG_17_202406281").mkdir()
        self.work = folder / "data.pitr"
        self.work.mkdir()
        record = main_data(struct.pack("<I", OID) + str(self.space).encode() + b"\0")
        writer, boundary = WalWriter(FIRST * SEGMENT_BYTES), number * SEGMENT_BYTES
        while writer.at < boundary - 2 * PAGE_BYTES:
            writer.record(bytes(8000))
        while writer.at < boundary + (-PAGE_BYTES if is_across else PAGE_BYTES):
            writer.fill_to(PAGE_BYTES - 48)
        self.made = writer.record(record, rmid=5)
        assert (self.made.start < boundary < self.made.last) == is_across
        while writer.at < (LAST + 1) * SEGMENT_BYTES:
            writer.record(bytes(8000))
        for start in range(0, (LAST + 1 - FIRST) * SEGMENT_BYTES, SEGMENT_BYTES):
            struct.pack_into("<Q", writer.wal, start + 24, SYSTEM)
        self.wal = bytes(writer.wal)
        for each in range(FIRST, LAST + 1):
            key = SegmentKey(ARCHIVE, segment_name(each), "00000000")
            self.shelf.objects[key] = self.content(each)
        self.plan_file = self.write(None)
        desk = Desk(self.work)
        desk.script.write_text(fetch_script(desk, self.plan_file, []))

    def content(self, number: int) -> bytes:
        begin = (number - FIRST) * SEGMENT_BYTES
        return self.wal[begin : begin + SEGMENT_BYTES]

    def write(self, replayed: ReplayedWal | None) -> Path:
        spans = [span(lsn_in(FIRST), lsn_in(LAST + 1))]
        path = lay_path(spans, [], segment_bytes=SEGMENT_BYTES)
        file = self.work / "wal-plan.json"
        Desk(self.work).spool.mkdir(exist_ok=True)
        header = WalPlanHeader("0" * 32, "ed25519:root", path, (), None, replayed)
        write_plan(file, header, find_segments(path, spans, self.shelf.list_wal))
        return file

    def feeder(self, **options: object) -> Prefetcher:
        given = {"data_dir": self.data, "user": None, "patience_s": 0.05, **options}
        return Prefetcher(self.plan_file, self.shelf.read, **given)  # type: ignore[arg-type]

    def link(self) -> None:
        """Do what replay did before the restore was killed."""
        (self.data / "pg_tblspc" / str(OID)).symlink_to(self.space)

    def alone(self, number: int, *, is_standby: bool = False) -> tuple[int, str]:
        place = self.data / "pg_wal" / "RECOVERYXLOG"
        place.unlink(missing_ok=True)
        request = WalFetchRequest(
            str(segment_name(number)), place, self.plan_file, is_standby, lambda _header: self.shelf.read
        )
        outcome = fetch_wal(request)
        if outcome.exit_code == 0:
            # As the server keeps what it was given.
            place.rename(place.with_name(str(segment_name(number))))
        return outcome.exit_code, outcome.message or ""


def ask(site: Site, number: int) -> int:
    """Run the script as the server does."""
    words = ["/bin/sh", str(Desk(site.work).script), str(segment_name(number)), "pg_wal/RECOVERYXLOG"]
    (site.data / "pg_wal" / "RECOVERYXLOG").unlink(missing_ok=True)
    return subprocess.run(words, cwd=site.data, check=False).returncode


def replay(site: Site, first: int = FIRST) -> int:
    """Ask as recovery does, from a segment on; return the first that was refused, or one after the last."""
    for number in range(first, LAST + 1):
        if ask(site, number) != 0:
            return number
        assert (site.data / "pg_wal" / "RECOVERYXLOG").read_bytes() == site.content(number)
    return LAST + 1


@pytest.fixture(params=[False, True], ids=["inside", "across"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, number=6, is_across=request.param)


def test_the_feeder_holds_it_back_and_says_why(site: Site) -> None:
    with site.feeder(ahead_bytes_max=3 * SEGMENT_BYTES) as feeding:
        assert replay(site) == 6
        refusal = feeding.refusal
        assert refusal is not None
        assert f"at {LSN(site.made.start)} WAL makes tablespace {OID} in {site.space}" in refusal.message
        assert "not empty" in refusal.message
        assert feeding.doubts == (refusal.words,)
        assert not (Desk(site.work).spool / str(segment_name(6))).exists()
        # A server that is started again asks again, from wherever it goes on.
        assert replay(site, 5) == 6
        assert ask(site, 6) == 200
        assert replay(site, 4) == 6


def test_who_begins_after_a_record_needs_nothing_before_it_until_it_goes_back(tmp_path: Path) -> None:
    site = Site(tmp_path, number=6, is_across=True)
    for gone in (3, 4, 5):
        site.shelf.fail(SegmentKey(ARCHIVE, segment_name(gone), "00000000"), StoreRefused("gone"))
    with site.feeder() as feeding:
        assert replay(site, 6) == LAST + 1
        assert ask(site, 6) == 0
        site.shelf.faults.clear()
        # As recovery does that reads its checkpoint first, and then goes to where that begins.
        assert replay(site, 5) == 6
        assert feeding.refusal is not None


def test_it_is_delivered_once_the_place_is_empty(site: Site) -> None:
    with site.feeder() as feeding:
        assert replay(site) == 6
        (site.space / "PG_17_202406281").rmdir()
        (site.space / "lost+found").mkdir()
        assert replay(site, 5) == LAST + 1
        assert feeding.refusal is None
        assert not feeding.doubts


def test_a_place_that_is_not_there_is_refused_in_words_of_its_own(site: Site) -> None:
    site.space.rename(site.space.with_name("gone"))
    with site.feeder() as feeding:
        assert replay(site) == 6
        assert feeding.refusal is not None
        assert "does not exist on this host" in feeding.refusal.message


def test_what_this_restore_made_before_it_was_killed_is_its_own(site: Site) -> None:
    site.link()
    with site.feeder():
        assert replay(site) == LAST + 1


def test_only_what_is_replayed_counts(site: Site) -> None:
    start, end = LSN(site.made.start), LSN(site.made.last)
    site.write(ReplayedWal(lsn_in(FIRST), start))
    with site.feeder():
        assert replay(site) == LAST + 1
    site.write(ReplayedWal(end, lsn_in(LAST)))
    with site.feeder():
        assert replay(site) == LAST + 1
    site.write(ReplayedWal(start, end))
    with site.feeder():
        assert replay(site) == 6


def test_a_run_that_leaves_nothing_behind_takes_no_directory_at_all(site: Site) -> None:
    (site.space / "PG_17_202406281").rmdir()
    with site.feeder(takes_spaces=False) as feeding:
        assert replay(site) == 6
        assert feeding.refusal is not None
        assert "outside of the folder of this run" in feeding.refusal.message


def test_a_server_that_was_started_by_hand_is_told_as_well(site: Site) -> None:
    assert [site.alone(number)[0] for number in (3, 4, 5)] == [0, 0, 0]
    code, message = site.alone(6)
    assert code == 200
    assert f"tablespace {OID}" in message
    assert "restore on another host" in message
    assert not list(Desk(site.work).spool.iterdir())
    site.link()
    assert site.alone(6)[0] == 0


def test_a_standby_is_ended_where_it_would_do_harm_and_waits_where_it_would_not(site: Site) -> None:
    # A standby has no end of WAL.
    site.write(ReplayedWal(lsn_in(FIRST), lsn_in(FIRST, 100)))
    assert [site.alone(number, is_standby=True)[0] for number in (3, 4, 5)] == [0, 0, 0]
    assert site.alone(6, is_standby=True)[0] == 200
    site.space.rename(site.space.with_name("gone"))
    code, message = site.alone(6, is_standby=True)
    assert code == 1
    assert "does not exist" in message


def test_a_replica_is_not_seeded_with_it(site: Site) -> None:
    def seed() -> int:
        return seed_replica(site.data, site.plan_file, site.shelf.read, user=None, workers=3).segments

    (site.data / "postgresql.auto.conf").write_text("")
    with pytest.raises(SpaceRefused, match="not empty"):
        seed()
    assert not (site.data / "pg_wal" / str(segment_name(6))).exists()
    (site.space / "PG_17_202406281").rmdir()
    assert seed() == LAST + 1 - FIRST
    assert (site.data / "pg_wal" / str(segment_name(6))).read_bytes() == site.content(6)
    assert not list((site.data / "pg_wal").glob("*.pitr"))


def test_the_plan_keeps_what_is_replayed(tmp_path: Path) -> None:
    site = Site(tmp_path, number=6)
    assert read_header(site.plan_file).replayed is None
    replayed = ReplayedWal(lsn_in(3, 24), lsn_in(7))
    assert read_header(site.write(replayed)).replayed == replayed
