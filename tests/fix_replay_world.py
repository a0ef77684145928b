"""A small world of one database and its topics, against whose truth decisions about replay are compared.

It commits, aborts, publishes late and out of order, consumes, takes fences stage by stage, and fails over:
then the tail of the WAL is lost, and transaction ids and LSNs are used again.  Everything that happened is
kept, so for any point of restore it knows which effects are in the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pitr.events.fence import Fence, GroupFence, Mark, PartitionFence, TopicFence
from pitr.events.history import FIRST_LSN, Branch, XactStatus
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SYSTEM = 7_300_000_000_000_000_001
CLUSTER = "cluster-1"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
MAX_LAG_S = 40
DB, GROUPED, CURSOR, LAGGING = "outbox", "orders", "payments", "audit"
TOPICS = (DB, GROUPED, CURSOR, LAGGING)


@dataclass(frozen=True)
class WalRecord:
    """One record: ``kind`` is begin, commit, abort."""

    timeline: int
    lsn: int
    xid: int
    kind: str


@dataclass(frozen=True)
class Effect:
    """A commit that holds an event's effect."""

    timeline: int
    xid: int
    lsn: int
    commit_lsn: int


@dataclass
class ModelEvent:
    """An event in a topic; ``effects`` are those commits that hold it, in any history."""

    topic: str
    offset: int
    appended_at: int
    effects: list[Effect] = field(default_factory=list)


@dataclass(frozen=True)
class Restored:
    """A point of restore: the way of timelines, where each was left, and the end."""

    way: tuple[int, ...]
    end: int


class World:
    """All that happened.  Each step takes one small number, which chooses among what is possible."""

    def __init__(self) -> None:
        self.now = 0
        self.timeline = 1
        self.next_timeline = 2
        self.lsn = 100
        self.next_xid = 10
        self.wal: list[WalRecord] = []
        self.in_flight: list[tuple[int, int]] = []
        self.unpublished: list[Effect] = []
        self.forks: dict[int, tuple[int, int, int]] = {}
        """timeline → parent, fork LSN, fork xid"""
        self.logs: dict[str, list[ModelEvent]] = {topic: [] for topic in TOPICS}
        self.ends = dict.fromkeys(TOPICS, 0)
        self.consumed = 0
        self.group = 0
        self.cursor_commits: list[tuple[Effect, int]] = []
        self.lagging: list[ModelEvent] = []
        self.fences: list[Fence] = []
        self.taking: dict[str, int] | None = None
        self.marked: Mark | None = None

    # -- PostgreSQL

    def _write(self, xid: int, kind: str) -> WalRecord:
        self.lsn += 1
        self.wal.append(WalRecord(self.timeline, self.lsn, xid, kind))
        return self.wal[-1]

    def begin(self, _choice: int) -> None:
        self._begin()

    def _begin(self) -> tuple[int, int]:
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self.in_flight.append((xid, self._write(xid, "begin").lsn))
        return self.in_flight[-1]

    def _commit(self, xid: int, lsn: int) -> Effect:
        self.in_flight.remove((xid, lsn))
        return Effect(self.timeline, xid, lsn, self._write(xid, "commit").lsn)

    def commit(self, choice: int) -> None:
        if self.in_flight:
            self.unpublished.append(self._commit(*self.in_flight[choice % len(self.in_flight)]))

    def abort(self, choice: int) -> None:
        if self.in_flight:
            one = self.in_flight.pop(choice % len(self.in_flight))
            self._write(one[0], "abort")

    def fail_over(self, choice: int) -> None:
        """Lose the last records of the current timeline; transactions in flight at the fork are aborted."""
        own = [one for one in self.wal if one.timeline == self.timeline]
        kept = own[: max(0, len(own) - choice)]
        since = self.forks.get(self.timeline, (0, 100, 10))
        fork_lsn = kept[-1].lsn + 1 if kept else since[1]
        begun = [one.xid for one in kept if one.kind == "begin"]
        fork_xid = max([since[2], *(xid + 1 for xid in begun)])
        self.forks[self.next_timeline] = (self.timeline, fork_lsn, fork_xid)
        self.timeline, self.next_timeline = self.next_timeline, self.next_timeline + 1
        self.lsn, self.next_xid = fork_lsn, fork_xid
        self.in_flight = []
        self.taking = self.marked = None

    # -- Kafka

    def _append(self, topic: str) -> ModelEvent:
        one = ModelEvent(topic, self.ends[topic], self.now)
        self.logs[topic].append(one)
        # Transaction markers take offsets too.
        self.ends[topic] += 1 + len(self.logs[topic]) % 2
        return one

    def publish(self, choice: int) -> None:
        if self.unpublished:
            effect = self.unpublished.pop(choice % len(self.unpublished))
            self._append(DB).effects.append(effect)

    def produce(self, choice: int) -> None:
        one = self._append((GROUPED, CURSOR, LAGGING)[choice % 3])
        if one.topic == LAGGING:
            self.lagging.append(one)

    def _apply(self, one: ModelEvent) -> Effect:
        effect = self._commit(*self._begin())
        one.effects.append(effect)
        return effect

    def consume_group(self, _choice: int) -> None:
        """Consume one into the database; the group's offset is committed by another step."""
        todo = [one for one in self.logs[GROUPED] if one.offset >= self.consumed]
        if todo:
            self._apply(todo[0])
            self.consumed = todo[0].offset + 1

    def commit_group(self, _choice: int) -> None:
        self.group = self.consumed

    def consume_cursor(self, _choice: int) -> None:
        position = self.cursor_in(self.tip())
        todo = [one for one in self.logs[CURSOR] if one.offset >= position]
        if todo:
            self.cursor_commits.append((self._apply(todo[0]), todo[0].offset + 1))

    def consume_lagging(self, choice: int) -> None:
        if self.lagging:
            self._apply(self.lagging.pop(choice % len(self.lagging)))

    def wait(self, choice: int) -> None:
        """Let time pass; what was appended is committed within the largest lag."""
        for _ in range(5 * choice):
            for one in [one for one in self.lagging if self.now >= one.appended_at + MAX_LAG_S - 1]:
                self.lagging.remove(one)
                self._apply(one)
            self.now += 1

    # -- fences, in three stages between which anything may happen

    def fence(self, _choice: int) -> None:
        if self.taking is None:
            self.taking = {**self.ends, "group": self.group}
        elif self.marked is None:
            lsn = LSN(self.lsn + 1)
            oldest = min([xid for xid, _ in self.in_flight] + [self.next_xid])
            xid = self._begin()
            self._commit(*xid)
            self.marked = Mark(
                len(self.fences) + 1,
                SYSTEM,
                TimelineId(self.timeline),
                lsn,
                xid[0],
                oldest,
                self.next_xid,
                EPOCH + timedelta(seconds=self.now),
            )
        else:
            self._keep(self.taking, self.marked)
            self.taking = self.marked = None

    def busy_fence(self, choice: int) -> None:
        """Take a fence while others work between its stages: what happens there decides the order."""
        for stage in range(3):
            if choice >> stage & 1:
                self.work(0)
                self.consume_group(0)
                self.commit_group(0)
            self.fence(0)

    def work(self, _choice: int) -> None:
        """Commit and publish at once, and let the sinks have something to do."""
        self.begin(0)
        self.commit(len(self.in_flight) - 1)
        self.publish(len(self.unpublished) - 1)
        self.produce(0)
        self.produce(2)

    def _keep(self, before: Mapping[str, int], mark: Mark) -> None:
        topics = tuple(
            TopicFence(name, f"id-{name}", (PartitionFence(0, 0, before[name], self.ends[name]),))
            for name in TOPICS
        )
        groups = (GroupFence("sink", {GROUPED: {0: before["group"]}}),)
        self.fences.append(Fence(mark, mark.at, None, CLUSTER, topics, groups))

    # -- the truth of a restore

    def tip(self) -> Restored:
        return self.point(self.timeline, self.lsn + 1)

    def point(self, timeline: int, end: int) -> Restored:
        way = [timeline]
        while way[0] in self.forks:
            way.insert(0, self.forks[way[0]][0])
        return Restored(tuple(way), end)

    def points(self) -> list[Restored]:
        """Return all points at which a restore can end."""
        return [self.point(one.timeline, one.lsn + 1) for one in self.wal]

    def holds(self, at: Restored, timeline: int, lsn: int) -> bool:
        """Tell whether a record is in the restored WAL."""
        if timeline not in at.way:
            return False
        place = at.way.index(timeline)
        left = at.end if place == len(at.way) - 1 else self.forks[at.way[place + 1]][1]
        return lsn < left

    def is_in(self, at: Restored, event: ModelEvent) -> bool:
        return any(self.holds(at, one.timeline, one.commit_lsn) for one in event.effects)

    def is_lost(self, at: Restored, event: ModelEvent) -> bool:
        """Tell whether every commit of an event was on a timeline of the way, after it was left."""
        lost = [
            one.timeline in at.way[:-1] and not self.holds(at, one.timeline, one.commit_lsn)
            for one in event.effects
        ]
        return any(lost)

    def branches(self, at: Restored) -> tuple[Branch, ...]:
        found = [Branch(TimelineId(at.way[0]), FIRST_LSN, 0)]
        for timeline in at.way[1:]:
            _, lsn, xid = self.forks[timeline]
            found.append(Branch(TimelineId(timeline), LSN(lsn), xid))
        return tuple(found)

    def fork_xid(self, at: Restored) -> int:
        begun = [one.xid for one in self.wal if self.holds(at, one.timeline, one.lsn)]
        least = self.forks[at.way[-1]][2] if at.way[-1] in self.forks else 10
        return max([least, *(xid + 1 for xid in begun)])

    def statuses(self, at: Restored) -> Mapping[int, XactStatus]:
        """Return what the restored database says, while it is paused where recovery stopped."""
        found = dict.fromkeys(range(self.fork_xid(at)), XactStatus.ABORTED)
        word = {"begin": XactStatus.IN_PROGRESS, "commit": XactStatus.COMMITTED, "abort": XactStatus.ABORTED}
        for one in self.wal:
            if self.holds(at, one.timeline, one.lsn):
                found[one.xid] = word[one.kind]
        return found

    def cursor_in(self, at: Restored) -> int:
        inside = [
            position
            for effect, position in self.cursor_commits
            if self.holds(at, effect.timeline, effect.commit_lsn)
        ]
        return max(inside, default=0)


STEPS = (
    "begin",
    "commit",
    "commit",
    "abort",
    "publish",
    "publish",
    "produce",
    "produce",
    "consume_group",
    "consume_group",
    "commit_group",
    "consume_cursor",
    "consume_lagging",
    "wait",
    "fence",
    "work",
    "busy_fence",
    "busy_fence",
    "fail_over",
)
