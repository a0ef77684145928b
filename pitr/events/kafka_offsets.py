"""Offsets of a real cluster: ends and begins of logs, and where groups stand.

They are asked of consumers that never join a group: their answers come as one list, while the admin client
makes a future of each partition, which costs three times as much (28 ms of a core for a thousand, not 10).
What a list cannot tell, which partition is refused, the admin client is asked then.

Where a group stands is asked of a consumer for another reason as well.  librdkafka's handler of OffsetFetch
asks the client's *own* group for a new coordinator when the coordinator has moved
(``rd_kafka_handle_OffsetFetch``, ``rkb_rk->rk_cgrp``).  An admin client has none: it follows a null pointer
and ends the process (librdkafka issue 5040; 2.16.0 still does).  A consumer of that ``group.id`` has one from
its making to its end, and all that it does here is to find the coordinator and to ask.

Reference: Apache Kafka, protocol: ListOffsets (timestamps -1 and -2), OffsetFetch; librdkafka
``rd_kafka_offsets_for_times``, ``rd_kafka_committed``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.kafka_link import KafkaLink
from pitr.events.partition import TopicPartition

# What the protocol calls the latest and the earliest time.
LATEST: Final = -1
EARLIEST: Final = -2
NONE_LATER: Final = -1
"""The offset of a time that no record is after."""
GROUPS_KEPT: Final = 32
"""Clients of groups that stay connected; each has a few threads."""
_ASKED_AT_ONCE: Final = 4
_LISTED_S: Final = 2.0
# So old may be what a client knows of leaders: each fence learns it anew, as it would of the admin client.
_LEADERS_AGE_MS: Final = 5_000
# A client without a right for its group learns that beside the call, which would only run out of its time.
_FIRST_LOOK_S: Final = 1.0

Offsets = Mapping[TopicPartition, int]


class KafkaOffsets:
    """Asks for offsets.  To be called by one thread at a time."""

    def __init__(self, link: KafkaLink) -> None:
        self._link: Final = link
        self._lister: Any = None
        self._members: OrderedDict[str, Any] = OrderedDict()

    def close(self) -> None:
        """Close the clients; a later call makes new ones."""
        if self._lister is not None:
            self._lister.close()
            self._lister = None
        while self._members:
            self._members.popitem()[1].close()

    def at(self, when: int, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return offsets of a time in milliseconds, LATEST or EARLIEST; NONE_LATER where no record is later.

        Ends are last stable offsets.  Raises BrokerUnavailable, BrokerRefused.
        """
        wanted = tuple(partitions)
        if not wanted:
            return {}
        if when >= 0:
            # A list has for what it was not told of what was asked: a time, which looks like an offset.
            return self._link.again(lambda: self._told_by_admin(when, wanted))
        try:
            return self._listed(when, wanted)
        except (BrokerUnavailable, BrokerRefused):
            # One that is refused fails them all without a name; and what is known of leaders may be old.
            return self._link.again(lambda: self._told_by_admin(when, wanted))

    def high(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return high watermarks: records of open transactions count.  Raises as ``at``."""
        wanted = tuple(partitions)
        return self._link.again(lambda: self._told_by_admin(LATEST, wanted, is_high=True)) if wanted else {}

    def _listed(self, when: int, wanted: Sequence[TopicPartition]) -> Offsets:
        link = self._link
        if self._lister is None:
            self._lister = link.consumer(
                {"isolation.level": "read_committed", "metadata.max.age.ms": _LEADERS_AGE_MS}
            )
        native = link.kafka.TopicPartition
        asked = [native(at.topic, at.partition, when) for at in wanted]
        timeout_s = min(_LISTED_S, link.settings.call_timeout_s)
        try:
            told = link.call(lambda: self._lister.offsets_for_times(asked, timeout=timeout_s))
        finally:
            self._lister.poll(0)  # it reads nothing: what went wrong below is handed over, and let go
        return self._read(wanted, told, least=0)

    def _told_by_admin(
        self, when: int, wanted: Sequence[TopicPartition], *, is_high: bool = False
    ) -> Offsets:
        link, spec = self._link, self._link.admin_parts.OffsetSpec
        levels = link.kafka.IsolationLevel
        which = {LATEST: spec.latest, EARLIEST: spec.earliest}.get(when, lambda: spec.for_timestamp(when))()
        asked = {link.kafka.TopicPartition(at.topic, at.partition): which for at in wanted}
        answers = link.call(
            lambda: link.admin().list_offsets(
                asked,
                isolation_level=levels.READ_UNCOMMITTED if is_high else levels.READ_COMMITTED,
                request_timeout=link.settings.call_timeout_s,
            )
        )
        found = {}
        for one, future in answers.items():
            at = TopicPartition(one.topic, one.partition)
            offset = int(link.wait(future, what=str(at)).offset)
            if offset < 0 and (when < 0 or offset != NONE_LATER):
                # A broker that does not answer in time is no error here, but an offset that is none.
                raise link.no_answer(f"{at} has no offset")
            found[at] = offset
        return found

    def committed(self, groups: Iterable[str], partitions: Iterable[TopicPartition]) -> Mapping[str, Offsets]:
        """Return the next offsets that groups have committed in these partitions; none where none is.

        Several groups are asked at the same time.  Raises BrokerUnavailable, BrokerRefused.
        """
        names, wanted = tuple(groups), tuple(partitions)
        if not names or not wanted:
            return {name: {} for name in names}
        found: dict[str, Offsets] = {}
        for first in range(0, len(names), GROUPS_KEPT):
            some = [(name, self._member(name)) for name in names[first : first + GROUPS_KEPT]]
            if len(some) == 1:
                found[some[0][0]] = self._committed(some[0][0], some[0][1], wanted)
                continue
            with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="kafka-groups") as pool:
                told = pool.map(lambda one: self._committed(one[0], one[1], wanted), some)
                found.update(zip((name for name, _ in some), told, strict=True))
        return found

    def _member(self, name: str) -> Any:
        """Return the client of a group, which is no member of it: it never subscribes."""
        found = self._members.pop(name, None)
        if found is None:
            # Not read_committed: an offset whose transaction is open would be no answer, not the one before.
            found = self._link.consumer({"isolation.level": "read_uncommitted"}, name)
        self._members[name] = found
        while len(self._members) > GROUPS_KEPT:
            self._members.popitem(last=False)[1].close()
        return found

    def _committed(self, name: str, member: Any, wanted: Sequence[TopicPartition]) -> Offsets:
        return self._link.again(lambda: self._committed_once(name, member, wanted))

    def _committed_once(self, name: str, member: Any, wanted: Sequence[TopicPartition]) -> Offsets:
        link, what = self._link, f"group {name}"
        deadline = time.monotonic() + link.settings.call_timeout_s
        look_s = _FIRST_LOOK_S
        while True:
            left_s = deadline - time.monotonic()
            try:
                told = self._ask(member, wanted, min(look_s, max(left_s, 0.1)), what)
                member.poll(0)  # it reads nothing; what went wrong below meanwhile is let go
                break
            except BrokerUnavailable:
                said = member.poll(0)
                if said is not None and said.error() is not None:
                    link.note(said.error())
                    refused = link.error(said.error(), what)
                    if isinstance(refused, BrokerRefused):
                        # It would not say so twice.
                        self._members.pop(name, None)
                        member.close()
                        raise refused from None
                if left_s <= look_s:
                    raise
                look_s *= 2
        found = self._read(wanted, told, least=None, what=f"{what}, ")
        return {at: offset for at, offset in found.items() if offset >= 0}

    def _ask(self, member: Any, wanted: Sequence[TopicPartition], timeout_s: float, what: str) -> Any:
        native = self._link.kafka.TopicPartition
        asked = [native(at.topic, at.partition) for at in wanted]
        return self._link.call(lambda: member.committed(asked, timeout=timeout_s), what)

    def _read(
        self, wanted: Sequence[TopicPartition], told: Sequence[Any], *, least: int | None, what: str = ""
    ) -> dict[TopicPartition, int]:
        """Return what was told, which is in the order of the question."""
        found: dict[TopicPartition, int] = {}
        for at, one in zip(wanted, told, strict=True):
            if one.error is not None:
                raise self._link.error(one.error, f"{what}{at}")
            offset = one.offset
            if one.partition != at.partition or one.topic != at.topic:
                raise self._link.no_answer(f"{what}{at}: the answer is of {one.topic}[{one.partition}]")
            if least is not None and offset < least:
                raise self._link.no_answer(f"{what}{at} has no offset")
            found[at] = offset
        return found
