"""One region in which names are taken already: WAL goes on streaming; in too many, it stops and says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_wal_archive import (
    WalHouse,
    archiving,
    flush_lsn,
    quick_settings,
    system_identifier,
    wait_until,
)

from cli.errors import describe
from pitr.errors import ArchiveDiverged, NameTaken
from pitr.layout import head_key
from storage.copy_faults import FaultKind
from storage.local import DirectoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore

KEEP_WAL = {"wal_keep_size": "1GB"}
NAMES = ("north", "south", "west")
# More than pitr.verified.BAD_MAX, with which a region is left out of the search for the newest.
HEADS_AHEAD = 20


class Squatter(DirectoryStore):
    """A region that has junk under each name of an archive before its object comes."""

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        if key.split("/")[0] in ("wal", "heads", "walindex", "history", "envelopes"):
            path = self._objects / key
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(b"junk")
        super().put(key, body, sha256=sha256, after_all=after_all)


@contextmanager
def opened(root: Path, squatters: tuple[str, ...] = (), who: str = "one") -> Iterator[ReplicatedStore]:
    """Three regions below ``root``, at a quorum of two, of which some are squatters."""
    with ExitStack() as ending:
        queue = ending.enter_context(closing(RepairQueue(root / f"{who}.repairs")))
        for name in NAMES:
            DirectoryStore.create(root / name)
        regions = [
            Region(name, (Squatter if name in squatters else DirectoryStore)(root / name)) for name in NAMES
        ]
        yield ending.enter_context(
            closing(ReplicatedStore(regions, quorum=2, queue=queue, after_all_prefixes=("heads/",)))
        )


def commit(server: RunningPostgres) -> None:
    server.execute("CREATE TABLE IF NOT EXISTS t (i int)")
    server.execute("INSERT INTO t VALUES (1)")


def plant_heads(root: Path, region: str, house: WalHouse, count: int) -> None:
    """Put junk under the names of the next heads."""
    newest = house.repository.latest_head(house.archive)
    sequence = 0 if newest is None else newest.sequence
    for number in range(sequence + 2, sequence + 2 + count):
        path = root / region / "objects" / head_key(house.archive, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(b"junk")


@pytest.mark.parametrize("region", NAMES)
def test_junk_under_the_next_names_of_one_region_stops_nothing(
    postgres_factory: PostgresFactory, tmp_path: Path, region: str
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    with opened(tmp_path) as store:
        house = WalHouse(store, system_identifier(server))
        with archiving(house, server.dsn, tmp_path / "spool") as running:
            running.wait_durable(flush_lsn(server))
            wait_until(lambda: running.told.heads, "the first head")
            plant_heads(tmp_path, region, house, HEADS_AHEAD)
            before = len(running.told.heads)
            wait_until(
                lambda: running.failure or len(running.told.heads) > before + 4 or commit(server),
                "heads past the junk",
            )
            running.wait_durable(flush_lsn(server))
        met = [fault for fault in store.damaged() if fault.kind is FaultKind.DAMAGED]
        assert {fault.region for fault in store.damaged()} == {region}
        assert any(fault.key.startswith("heads/") for fault in met)
    # Another run finds the end past what lies there, and goes on.
    with opened(tmp_path, who="two") as store:
        house = WalHouse(store, system_identifier(server))
        with archiving(house, server.dsn, tmp_path / "spool") as running:
            running.wait_streaming()
            commit(server)
            running.wait_durable(flush_lsn(server))
        assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_a_region_that_claims_every_name_is_left_out_and_told(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    with opened(tmp_path, ("north",)) as store:
        house = WalHouse(store, system_identifier(server))
        with archiving(house, server.dsn, tmp_path / "spool") as running:
            running.wait_streaming()
            server.switch_wal()
            commit(server)
            wait_until(lambda: running.failure or running.told.segments, "a whole segment")
            wait_until(
                lambda: running.failure or len(running.told.heads) > 2 or commit(server), "three heads"
            )
            running.wait_durable(flush_lsn(server))
        north, south, west = store.status()
        assert north.stuck_repairs or north.pending_repairs
        assert north.bad_copies > 0
        assert (south.bad_copies, west.bad_copies) == (0, 0)
        assert (south.is_healthy, west.is_healthy) == (True, True)
        # Readers fall back past the region that comes first.
        assert house.wal(1).assert_equals_server(server.data_dir) > 0
        head = house.repository.latest_head(house.archive)
        assert head is not None
        assert head.wal_end == house.wal(1).end


def test_junk_in_so_many_regions_that_no_quorum_is_left_stops_the_archiver_with_what_to_do(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    with opened(tmp_path) as store:
        house = WalHouse(store, system_identifier(server))
        with archiving(house, server.dsn, tmp_path / "spool") as running:
            running.wait_durable(flush_lsn(server))
            wait_until(lambda: running.told.heads, "the first head")
            for region in ("south", "west"):
                plant_heads(tmp_path, region, house, HEADS_AHEAD)
            wait_until(lambda: not running.thread.is_alive() or commit(server), "the archiver to stop")
            with pytest.raises(NameTaken) as raised:
                running.join()
        first, why, following = describe(raised.value).lines()
        assert first.startswith("error[PITR-9003]: too few regions can take heads/")
        assert "south: object heads/" in why
        assert "west: object heads/" in why
        assert "remove it there by hand" in following
        for region in ("south", "west"):
            for path in (tmp_path / region / "objects/heads").rglob("*"):
                if path.is_file() and path.read_bytes() == b"junk":
                    path.unlink()
        # As it said: once that is gone, the same head is put, and nothing is missing.
        with archiving(house, server.dsn, tmp_path / "spool") as running:
            running.wait_streaming()
            commit(server)
            running.wait_durable(flush_lsn(server))
        assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_two_daemons_over_the_same_regions_still_stop_each_other(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    with opened(tmp_path) as store, opened(tmp_path, ("west",), who="two") as others:
        house = WalHouse(store, system_identifier(server))
        twin = WalHouse(others, system_identifier(server))
        with archiving(house, server.dsn, tmp_path / "spool-one") as one:
            one.wait_streaming()
            one.wait_durable(flush_lsn(server))
            settings = quick_settings(slot="another")
            with archiving(twin, server.dsn, tmp_path / "spool-two", settings=settings) as two:
                while one.thread.is_alive() and two.thread.is_alive():
                    commit(server)
                stopped = one if not one.thread.is_alive() else two
                with pytest.raises(ArchiveDiverged, match="another writer"):
                    stopped.join()
