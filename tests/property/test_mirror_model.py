"""Translation against a model of a mirror that is killed, goes back, and whose target is cut or made anew.

The model knows each copy.  Its truth for an offset is the highest position of the target from which every
record at or above that offset, of those that the target holds, can still be read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hypothesis import event, example, given
from hypothesis import strategies as st

from pitr.events.fence import Identity
from pitr.events.sync_pairs import KnownPairs, Step, SyncPair, above, at_most, epochs, step, thin
from pitr.events.translate import Basis, Translation, mirror_log, translate, with_found

SOURCE_MAX = 40


@dataclass
class World:
    """A source's partition (None: a marker or an aborted record), and what became of its mirror."""

    source: list[Identity | None]
    copies: list[int | None] = field(default_factory=list)
    log_start: int = 0
    pairs: tuple[SyncPair, ...] = ()
    settled: int = -1
    goal: tuple[int, int] | None = None
    """The source's end, and up to which downstream offset pairs were seen before it was read."""
    goes_back: bool = False
    must_tell: bool = False
    """The target was cut below the last pair: MirrorMaker writes one with the next record."""

    def tell(self, pair: SyncPair) -> None:
        """A pair reaches whoever keeps them, who does what ``SyncBook`` does."""
        what = step(self.pairs[-1] if self.pairs else None, pair)
        if what is Step.RESETS:
            self.void()
        if what is not Step.REPEATS:
            self.pairs = (*self.pairs, pair)
        if self.goal is not None and pair.upstream >= self.goal[0]:
            self.settled, self.goal = self.goal[1], None

    def void(self) -> None:
        self.pairs, self.settled, self.goal = (), -1, None

    def look_at_source(self, reached: int) -> None:
        """A fence reads the source's end: nothing that was mirrored so far lies above."""
        if self.goal is None and self.pairs:
            self.goal = (max(self.pairs[-1].upstream, reached - 1), self.pairs[-1].downstream)

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
        known = KnownPairs("id", self.pairs, self.settled)
        log = mirror_log(known, log_start=self.log_start, end=len(self.copies))
        told = translate(log, upstream, last_offset=last)
        if not told.may_search or last is None:
            return told, told
        for at in range(told.lower, told.upper):
            copy = self.copies[at]
            if copy is not None and self.source[copy] == self.source[last]:
                return told, with_found(told, at)
        return told, told


@st.composite
def worlds(draw: st.DrawFn, *, has_twins: bool) -> World:
    source: list[Identity | None] = []
    for offset in range(draw(st.integers(1, SOURCE_MAX))):
        who = draw(st.integers(0, 3)) if has_twins else offset
        is_record = draw(st.integers(0, 4)) > 0
        source.append(Identity(who, hashlib.sha256(bytes([who])).digest()) if is_record else None)
    world = World(source)
    reached = highest = draw(st.sampled_from([0, 0, 3]))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.sampled_from([reached, draw(st.integers(0, reached))]))
        world.goes_back |= begin < reached and bool(world.copies)
        reached = draw(st.integers(begin, max(begin, len(source))))
        for upstream in range(begin, min(reached, len(source))):
            highest = max(highest, upstream + 1)
            copy(draw, world, upstream, highest)
        harm(draw, world)
    return world


def copy(draw: st.DrawFn, world: World, upstream: int, highest: int) -> None:
    if world.source[upstream] is None:
        return
    if draw(st.integers(0, 5)) == 0:
        world.copies.append(None)  # the marker of a mirror that writes exactly once
    world.copies.append(upstream)
    if world.must_tell or draw(st.integers(0, 3)) == 0:
        world.tell(SyncPair(upstream, len(world.copies) - 1))
        world.must_tell = False
    if draw(st.integers(0, 5)) == 0:
        world.look_at_source(highest)


def harm(draw: st.DrawFn, world: World) -> None:
    kind = draw(st.sampled_from(["nothing", "nothing", "deleted", "cut", "made anew"]))
    event(kind)
    if kind == "deleted":
        world.log_start = draw(st.integers(world.log_start, len(world.copies)))
    elif kind == "cut":
        del world.copies[draw(st.integers(world.log_start, len(world.copies))) :]
        # Whoever keeps the pairs sees that the log is shorter; sometimes only by a pair that is void.
        if not world.pairs or world.pairs[-1].downstream < len(world.copies) or draw(st.booleans()):
            world.void()
        else:
            world.must_tell = True
    elif kind == "made anew":
        # Whoever keeps the pairs sees another topic id.
        world.copies.clear()
        world.log_start = 0
        world.void()
        world.must_tell = False


@given(worlds(has_twins=True), st.integers(0, SOURCE_MAX))
def test_a_translated_offset_is_never_past_the_truth(world: World, upstream: int) -> None:
    upstream = min(upstream, len(world.source))
    told, found = world.translate(upstream)
    event(f"{told.basis} → {found.basis}")
    assert told.lower <= found.lower <= world.truth(upstream)


def cut_inside_a_pair() -> World:
    """The copy that a pair names is deleted, and the marker behind it is where the log begins."""
    source: list[Identity | None] = [Identity(who, bytes(32)) for who in range(3)]
    return World(source, [0, None, 1, 2], log_start=1, pairs=(SyncPair(0, 0), SyncPair(2, 3)), settled=3)


@given(worlds(has_twins=False), st.integers(0, SOURCE_MAX))
@example(cut_inside_a_pair(), 0)
def test_a_translated_offset_is_the_truth_where_the_record_before_is_known(
    world: World, upstream: int
) -> None:
    upstream = min(upstream, len(world.source))
    _, found = world.translate(upstream)
    event(f"{found.basis}, {'went back' if world.goes_back else 'straight on'}")
    begin = max(found.lower, world.log_start)
    between = [one for one in world.copies[begin : world.truth(upstream)] if one is not None]
    if found.is_exact and not world.goes_back:
        assert between == []
    if found.basis is Basis.LOWER_BOUND and not found.is_cut:
        last = world.last_below(upstream)
        places = world.held().get(-1 if last is None else last, [])
        assert all(place < found.lower for place in places)


@given(worlds(has_twins=True), st.integers(0, SOURCE_MAX))
def test_what_is_said_to_be_missing_is_not_behind_what_is_read(world: World, upstream: int) -> None:
    upstream = min(upstream, len(world.source))
    told, _ = world.translate(upstream)
    if told.missing is None:
        return
    event("missing")
    assert told.lower == world.log_start
    if not world.goes_back:
        assert not [one for one in world.held() if told.missing[0] <= one < told.missing[1]]


@given(worlds(has_twins=True), st.integers(0, 20), st.integers(0, SOURCE_MAX))
def test_pairs_that_are_left_out_make_a_translation_less_tight_but_never_wrong(
    world: World, spacing: int, upstream: int
) -> None:
    upstream = min(upstream, len(world.source))
    before, _ = world.translate(upstream)
    world.pairs = at_most(thin(above(world.pairs, world.log_start), spacing=spacing), 2 + spacing)
    after, found = world.translate(upstream)
    assert after.lower <= found.lower <= world.truth(upstream)
    assert after.lower <= max(before.lower, world.log_start)
    assert len(world.pairs) <= 2 + spacing


@given(worlds(has_twins=True))
def test_epochs_are_where_upstream_offsets_fall(world: World) -> None:
    parts = epochs(world.pairs)
    assert tuple(pair for part in parts for pair in part.pairs) == world.pairs
    for part in parts:
        ups = [pair.upstream for pair in part.pairs]
        assert ups == sorted(set(ups))
    log = mirror_log(KnownPairs("id", world.pairs), log_start=0, end=len(world.copies) + 99)
    assert log.regressions == max(0, len(parts) - 1)
