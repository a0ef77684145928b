"""Translation against a model of a mirror that is killed, goes back, and whose target is cut or made anew.

The model knows each copy.  Its truth for an offset is the highest position of the target from which every
record at or above that offset, of those that the target holds, can still be read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hypothesis import event, given
from hypothesis import strategies as st

from pitr.events.fence import Identity
from pitr.events.sync_pairs import SyncPair, above, add_pairs, epochs, thin
from pitr.events.translate import Basis, Translation, translate, with_found

SOURCE_MAX = 60


@dataclass
class World:
    """A source's partition (None: a marker or an aborted record), and what became of its mirror."""

    source: list[Identity | None]
    copies: list[int | None] = field(default_factory=list)
    log_start: int = 0
    pairs: tuple[SyncPair, ...] = ()

    def held(self) -> dict[int, list[int]]:
        """Upstream offset → where its copies are."""
        found: dict[int, list[int]] = {}
        for at in range(self.log_start, len(self.copies)):
            upstream = self.copies[at]
            if upstream is not None:
                found.setdefault(upstream, []).append(at)
        return found

    def truth(self, upstream: int) -> int:
        last = [places[-1] for one, places in self.held().items() if one >= upstream]
        return min(last, default=len(self.copies))

    def last_below(self, upstream: int) -> int | None:
        records = [n for n in range(upstream) if self.source[n] is not None]
        return records[-1] if records else None

    def translate(self, upstream: int) -> tuple[Translation, Translation]:
        """Return what pairs tell, and what a search for the record before makes of it."""
        last = self.last_below(upstream)
        first = translate(
            epochs(self.pairs), upstream, log_start=self.log_start, end=len(self.copies), last_offset=last
        )
        if not first.may_search or last is None:
            return first, first
        for at in range(first.lower, first.upper):
            copy = self.copies[at]
            if copy is not None and self.source[copy] == self.source[last]:
                return first, with_found(first, at)
        return first, first


@st.composite
def worlds(draw: st.DrawFn, *, is_told: bool, has_twins: bool) -> World:
    """``is_told``: each life of the mirror writes a pair for the first record that it copies."""
    kinds = st.integers(0, 3) if has_twins else st.just(0)
    source: list[Identity | None] = []
    for offset in range(draw(st.integers(1, SOURCE_MAX))):
        who = draw(kinds) if has_twins else offset
        is_record = draw(st.integers(0, 4)) > 0
        source.append(Identity(who, hashlib.sha256(bytes([who])).digest()) if is_record else None)
    world = World(source)
    reached = draw(st.sampled_from([0, 0, 3]))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, reached)) if world.copies else reached
        stop = draw(st.integers(begin, len(source)))
        live(draw, world, begin, stop, is_told=is_told)
        reached = max(begin, stop) if world.copies else reached
        harm(draw, world)
    return world


def live(draw: st.DrawFn, world: World, begin: int, stop: int, *, is_told: bool) -> None:
    """One life of the mirror; to a target that was cut it writes a pair at once, as Kafka does."""
    must_tell = is_told or bool(world.pairs and world.pairs[-1].downstream >= len(world.copies))
    every = draw(st.integers(1, 9))
    markers = draw(st.booleans())
    for upstream in range(begin, stop):
        if world.source[upstream] is None:
            continue
        if markers and draw(st.booleans()):
            world.copies.append(None)
        world.copies.append(upstream)
        if must_tell or draw(st.integers(0, every)) == 0:
            world.pairs = add_pairs(world.pairs, [SyncPair(upstream, len(world.copies) - 1)])
        must_tell = False


def harm(draw: st.DrawFn, world: World) -> None:
    kind = draw(st.sampled_from(["nothing", "nothing", "deleted", "cut", "made anew"]))
    event(kind)
    if kind == "deleted":
        world.log_start = draw(st.integers(world.log_start, len(world.copies)))
    elif kind == "cut":
        del world.copies[draw(st.integers(world.log_start, len(world.copies))) :]
    elif kind == "made anew":
        # Whoever keeps the pairs sees another topic id.
        world.copies.clear()
        world.log_start, world.pairs = 0, ()


@given(worlds(is_told=False, has_twins=True), st.data())
def test_a_translated_offset_is_never_past_the_truth(world: World, data: st.DataObject) -> None:
    upstream = data.draw(st.integers(0, len(world.source)))
    told, found = world.translate(upstream)
    event(f"{told.basis} → {found.basis}")
    assert told.lower <= found.lower <= world.truth(upstream)


@given(worlds(is_told=True, has_twins=False), st.data())
def test_a_translated_offset_is_the_truth_where_the_record_before_is_known(
    world: World, data: st.DataObject
) -> None:
    upstream = data.draw(st.integers(0, len(world.source)))
    _, found = world.translate(upstream)
    event(found.basis)
    if found.is_exact:
        between = world.copies[found.lower : world.truth(upstream)]
        # Transaction markers of a mirror that writes exactly once hold no event.
        assert [copy for copy in between if copy is not None] == []
    if found.basis is Basis.LOWER_BOUND and not found.is_cut:
        last = world.last_below(upstream)
        assert last not in world.held() or found.lower > world.held()[last][0]


@given(worlds(is_told=False, has_twins=True), st.data())
def test_what_is_said_to_be_missing_is_not_on_the_target(world: World, data: st.DataObject) -> None:
    upstream = data.draw(st.integers(0, len(world.source)))
    told, _ = world.translate(upstream)
    if told.missing is not None:
        event("missing")
        first, end = told.missing
        behind = [one for one in world.held() if first <= one < end]
        # A life that no pair tells of may have copied them once more; then they are read, and the gap is
        # said in vain.
        assert all(world.held()[one][-1] >= told.lower for one in behind)


@given(worlds(is_told=False, has_twins=True), st.integers(0, 20), st.data())
def test_pairs_that_are_left_out_make_a_translation_less_tight_but_never_wrong(
    world: World, spacing: int, data: st.DataObject
) -> None:
    upstream = data.draw(st.integers(0, len(world.source)))
    before, _ = world.translate(upstream)
    world.pairs = thin(above(world.pairs, world.log_start), spacing=spacing)
    after, found = world.translate(upstream)
    assert after.lower <= found.lower <= world.truth(upstream)
    if before.basis is after.basis is Basis.LOWER_BOUND:
        assert after.upper - after.lower <= max(spacing, before.upper - before.lower)


@given(worlds(is_told=False, has_twins=True), st.data())
def test_the_latest_epoch_that_begins_at_or_below_has_the_last_pair_at_or_below(
    world: World, data: st.DataObject
) -> None:
    upstream = data.draw(st.integers(0, len(world.source)))
    told = translate(epochs(world.pairs), upstream, log_start=0, end=len(world.copies) + 1_000)
    below = [pair for pair in world.pairs if pair.upstream <= upstream]
    if below:
        assert told.lower == below[-1].downstream + (below[-1].upstream < upstream)
    else:
        assert told.basis is Basis.LOG_START
    parts = epochs(world.pairs)
    assert tuple(pair for part in parts for pair in part.pairs) == world.pairs
    for part in parts:
        assert list(part.pairs) == sorted(set(part.pairs), key=lambda pair: pair.upstream)
