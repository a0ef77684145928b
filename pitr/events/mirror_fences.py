"""Fences of a source in the offsets of its mirror, so that a plan can be made without the source.

What a translated fence says is never too much: starts are at or below the truth, and what would have to be
at or above it (``after``) is left out.  A topic whose source was made anew since keeps its id, which is not
that of the target's: plans find the gap by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pitr.events.broker import Broker, BrokerRefused
from pitr.events.fence import Fence, GroupFence, Identity, PartitionFence, TopicFence
from pitr.events.mirror_names import MirrorNames
from pitr.events.mirror_search import search
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import PairSource
from pitr.events.translate import MirrorLog, Translation, mirror_log, translate, unmirrored_max


@dataclass(frozen=True, slots=True)
class TranslatedPartition:
    """What became of one partition of the fence that was looked at closely.

    ``read`` records were read for it; ``stopped`` says why its record was not found; ``unmirrored_max`` is
    how many records before the fence may not have been mirrored.
    """

    at: TopicPartition
    translation: Translation
    read: int
    stopped: str | None
    unmirrored_max: int


class FenceTranslator:
    """Translates fences of some topics.  Asks the target once when made; not thread-safe.

    Raises BrokerRefused, naming it, if a topic or a partition was never mirrored; BrokerUnavailable.
    """

    def __init__(self, target: Broker, names: MirrorNames, pairs: PairSource, topics: Iterable[str]) -> None:
        self._target: Final = target
        self._names: Final = names
        self._cluster_id: Final = target.cluster_id()
        self._logs: Final[dict[TopicPartition, MirrorLog]] = {}
        self._topic_ids: Final[dict[str, str]] = {}
        self.missing: Final[dict[tuple[int | None, TopicPartition], tuple[int, int]]] = {}
        """Source's records [from, to) without a copy, by the fence's number, of cursors by None."""
        self._look(pairs, sorted(set(topics)))

    def offset(self, at: TopicPartition, upstream: int, *, last_offset: int | None = None) -> Translation:
        """Translate one offset of the source, such as a sink's cursor, by pairs alone."""
        return translate(self._log(at), upstream, last_offset=last_offset)

    def cursor(self, at: TopicPartition, upstream: int) -> Translation:
        """Translate a sink's cursor."""
        found = self.offset(at, upstream)
        self._note(None, at, found)
        return found

    def fences(self, fences: Sequence[Fence]) -> tuple[Fence, ...]:
        """Translate fences by pairs alone; topics that are not asked for are left out."""
        newest_ids = _newest_ids(fences)
        return tuple(self._fence(fence, newest_ids, {}) for fence in fences)

    def closely(
        self, fence: Fence, newest: Fence | None = None
    ) -> tuple[Fence, tuple[TranslatedPartition, ...]]:
        """Translate the fence that a replay starts from: records are looked for by their identity.

        ``newest`` is the newest fence of the source, if it is another one; its topic ids count.
        """
        found = {
            at: self._closely(at, partition)
            for topic in fence.topics
            for partition in topic.partitions
            if (at := TopicPartition(topic.name, partition.number)) in self._logs
        }
        exact = {at: one.translation for at, one in found.items()}
        ids = _newest_ids([one for one in (fence, newest) if one is not None])
        return self._fence(fence, ids, exact), tuple(found.values())

    def unmirrored(self, newest: Fence) -> tuple[TranslatedPartition, ...]:
        """Return for each partition how much of the source was lost with it: the mirror's recovery point."""
        return self.closely(newest)[1]

    def _closely(self, at: TopicPartition, partition: PartitionFence) -> TranslatedPartition:
        plain = self.offset(at, partition.before, last_offset=partition.last_offset)
        unmirrored = unmirrored_max(self._log(at), partition.before)
        identity: Identity | None = partition.last
        if identity is None:
            stopped = None if plain.is_exact else "the fence does not say which record was its last"
            return TranslatedPartition(at, plain, 0, stopped, unmirrored)
        done = search(self._target, self._names.remote_partition(at), plain, identity)
        if done.translation.is_exact:
            unmirrored = 0  # its last record is there, and so are those before it
        return TranslatedPartition(at, done.translation, done.read, done.stopped, unmirrored)

    def _log(self, at: TopicPartition) -> MirrorLog:
        try:
            return self._logs[at]
        except KeyError:
            raise BrokerRefused(
                f"{at} was never mirrored: the target has no {self._names.remote_partition(at)}",
                hint="what it held is lost with the source; leave its topic out, by name",
            ) from None

    def _look(self, pairs: PairSource, topics: Sequence[str]) -> None:
        remotes = {self._names.remote(topic): topic for topic in topics}
        found = self._target.topics(remotes)
        missing = sorted(set(remotes) - set(found))
        if missing:
            raise BrokerRefused(
                f"topic {remotes[missing[0]]} was never mirrored: the target has no {missing[0]}",
                detail=f"topics that are not there: {', '.join(missing[:10])}",
                hint="what it held is lost with the source; leave it out, by name",
            )
        self._topic_ids.update((remotes[remote], facts.topic_id) for remote, facts in found.items())
        there = [
            TopicPartition(remotes[remote], number)
            for remote, facts in found.items()
            for number in range(facts.partitions)
        ]
        # Pairs before ends: a pair that was written in between must not look like a target that was cut.
        known = {at: pairs.known(at) for at in there}
        wanted = [self._names.remote_partition(at) for at in there]
        begins, ends = self._target.begins(wanted), self._target.ends(wanted)
        for at, remote_at in zip(there, wanted, strict=True):
            one = known[at]
            if one is not None and one.topic_id != self._topic_ids[at.topic]:
                one = None  # they are of a topic of that name before this one
            self._logs[at] = mirror_log(one, log_start=begins[remote_at], end=ends[remote_at])

    def _fence(
        self, fence: Fence, newest_ids: Mapping[str, str], exact: Mapping[TopicPartition, Translation]
    ) -> Fence:
        topics = [self._topic(fence, topic, newest_ids, exact) for topic in fence.topics]
        groups = tuple(self._group(fence, group, exact) for group in fence.groups)
        return replace(
            fence,
            cluster_id=None if fence.cluster_id is None else self._cluster_id,
            topics=tuple(topic for topic in topics if topic is not None),
            groups=groups,
        )

    def _note(self, fence: int | None, at: TopicPartition, translation: Translation) -> None:
        if translation.missing is not None:
            start, end = translation.missing
            known = self.missing.get((fence, at), (start, end))
            self.missing[fence, at] = (min(start, known[0]), max(end, known[1]))

    def _topic(
        self,
        fence: Fence,
        topic: TopicFence,
        newest_ids: Mapping[str, str],
        exact: Mapping[TopicPartition, Translation],
    ) -> TopicFence | None:
        if topic.name not in self._topic_ids:
            return None
        if newest_ids.get(topic.name, topic.topic_id) != topic.topic_id:
            # Made anew at the source: pairs do not tell of which of the two they are.
            return topic
        parts = []
        for one in topic.partitions:
            at = TopicPartition(topic.name, one.number)
            if at not in self._logs and one.before == 0:
                continue  # it was empty, and a mirror makes partitions when it next looks
            before = exact.get(at) or self.offset(at, one.before, last_offset=one.last_offset)
            self._note(fence.mark.number, at, before)
            low = min(self.offset(at, one.low).lower, before.lower)
            parts.append(replace(one, low=low, before=before.lower, after=None, last=None, last_offset=None))
        return replace(topic, topic_id=self._topic_ids[topic.name], partitions=tuple(parts))

    def _group(
        self, fence: Fence, group: GroupFence, exact: Mapping[TopicPartition, Translation]
    ) -> GroupFence:
        offsets: dict[str, dict[int, int]] = {}
        for topic, numbers in group.offsets.items():
            for number, offset in numbers.items():
                at = TopicPartition(topic, number)
                if at in self._logs:
                    found = exact.get(at)
                    same = (
                        found if found is not None and found.upstream == offset else self.offset(at, offset)
                    )
                    self._note(fence.mark.number, at, same)
                    offsets.setdefault(topic, {})[number] = same.lower
        return replace(group, offsets=offsets)


def _newest_ids(fences: Iterable[Fence]) -> dict[str, str]:
    ids: dict[str, str] = {}
    for fence in sorted(fences, key=lambda one: one.collector_at):
        ids.update({topic.name: topic.topic_id for topic in fence.topics})
    return ids
