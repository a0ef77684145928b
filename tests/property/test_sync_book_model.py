"""The book of a mirror's pairs, and its copy in the store, against a list in memory; runs are killed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from fix_fences import FENCE_AT
from fix_repository import RepositoryHouse
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr.datakeys import DataKeys
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import Position, SyncBook
from pitr.events.sync_pairs import KnownPairs, Sync, SyncPair
from pitr.events.sync_store import SyncReader, SyncWriter
from storage.memory import MemoryStore

AT = TopicPartition("orders", 0)


@dataclass
class Model:
    """What a reader of the code would write down by hand."""

    topic_id: str = "t0"
    pairs: tuple[SyncPair, ...] = ()
    settled: int = -1
    goal: tuple[int, int] | None = None

    def void(self) -> None:
        self.pairs, self.settled, self.goal = (), -1, None

    def pair(self, pair: SyncPair) -> None:
        if self.pairs and self.pairs[-1] == pair:
            return
        if self.pairs and self.pairs[-1].downstream >= pair.downstream:
            self.void()
        self.pairs = (*self.pairs, pair)
        if self.goal is not None and pair.upstream >= self.goal[0]:
            self.settled, self.goal = self.goal[1], None

    def source(self, end: int) -> None:
        if not self.pairs:
            return
        last = self.pairs[-1]
        if last.upstream >= end - 1:
            if self.settled != last.downstream:
                self.settled, self.goal = last.downstream, None
        elif self.goal is None or self.goal[0] >= end:
            self.goal = (end - 1, last.downstream)


_pair = st.builds(SyncPair, st.integers(0, 30), st.integers(0, 30))
_steps = st.one_of(
    st.tuples(st.just("pairs"), st.lists(_pair, min_size=1, max_size=4).map(tuple)),
    st.tuples(
        st.just("pairs"),
        st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True).map(
            lambda found: tuple(SyncPair(n, n) for n in sorted(found))
        ),
    ),
    st.tuples(st.just("source"), st.integers(0, 32)),
    st.sampled_from([("made anew", None), ("ship", None), ("kill", None), ("read", None)]),
)


@settings(max_examples=40)
@given(st.lists(_steps, max_size=12))
def test_book_and_store_say_what_was_seen(steps: list[tuple[str, object]]) -> None:
    house = RepositoryHouse(MemoryStore())
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.sqlite"
        book = SyncBook(path)

        def writer() -> SyncWriter:
            return SyncWriter(house.repository, house.archive, house.host, house.keys.wal_key, "eu")

        shipping = writer()
        for kind, what in [*steps, ("ship", None), ("read", None)]:
            if kind == "pairs":
                assert isinstance(what, tuple)
                book.add([Sync(AT, one) for one in what], {"orders": model.topic_id}, Position("s", 1))
                for one in what:
                    model.pair(one)
            elif kind == "source":
                assert isinstance(what, int)
                book.source_stood_at({AT: what})
                model.source(what)
            elif kind == "made anew" and model.pairs:
                model.topic_id += "x"
                model.void()
                book.add([Sync(AT, SyncPair(1, 1))], {"orders": model.topic_id}, Position("s", 1))
            elif kind == "ship":
                while shipping.ship(book, FENCE_AT):
                    pass
                stored = SyncReader(house.repository, house.archive).read(
                    "eu", DataKeys(house.repository, house.identity)
                )
                assert stored.faults == ()
                assert stored.known(AT) == book.known(AT)
            elif kind == "kill":
                # Nothing is said to it: what it has not committed is not there.
                book = SyncBook(path)
                shipping = writer()
            elif book.known(AT) is not None:
                assert book.known(AT) == KnownPairs(model.topic_id, model.pairs, model.settled)
        book.close()
