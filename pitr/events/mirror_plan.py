"""A plan of replay over a mirror: the same, of translated fences and cursors.  The source is not asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from pitr.events.broker import Broker
from pitr.events.fence import Fence
from pitr.events.mirror_age import mirrored_until
from pitr.events.mirror_broker import MirrorBroker
from pitr.events.mirror_fences import FenceTranslator, TranslatedPartition
from pitr.events.mirror_gaps import with_unmirrored
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition
from pitr.events.plan import ReplayPlan
from pitr.events.plan_build import PlanRequest, build_plan
from pitr.events.starts import FenceView
from pitr.events.sync_pairs import PairSource


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """The plan, in the target's offsets and under the source's names, and what a person must know of it.

    ``partitions`` say how exact the fence is that it starts from; ``tail`` how much before the newest fence
    may not be mirrored; ``until`` when the mirror last brought anything, None if nothing says so.
    """

    plan: ReplayPlan
    partitions: tuple[TranslatedPartition, ...]
    tail: tuple[TranslatedPartition, ...]
    until: datetime | None


def build_mirror_plan(
    request: PlanRequest,
    target: Broker,
    names: MirrorNames,
    pairs: PairSource,
    told: Callable[[TopicPartition, int], None] = lambda _at, _count: None,
) -> MirrorPlan:
    """Return the plan of ``request``, whose fences and cursors are the source's.

    Raises BrokerRefused if a declared topic was never mirrored, and what ``build_plan`` raises.
    """
    translator = FenceTranslator(target, names, pairs, [one.topic for one in request.declarations])
    view, fences = request.view, (*request.view.inside, *request.view.after)
    translated = list(translator.fences(fences))
    start = next((one for one in view.inside if one.unknown is None), None)
    known = (one for one in fences if one.unknown is None)
    newest = max(known, key=lambda one: one.collector_at, default=None)
    partitions: tuple[TranslatedPartition, ...] = ()
    if start is not None:
        # The records of the one that most starts are from are looked for; the others are bounds.
        translated[fences.index(start)], partitions = translator.closely(start, newest)
    inside = tuple(translated[: len(view.inside)])
    request = _with_cursors(
        replace(request, view=FenceView(inside, tuple(translated[len(view.inside) :]))), translator
    )
    plan = build_plan(request, MirrorBroker(target, names), told)
    return MirrorPlan(
        with_unmirrored(plan, translator.missing),
        partitions,
        _tail(translator, newest, start, partitions),
        mirrored_until(target, names),
    )


def _with_cursors(request: PlanRequest, translator: FenceTranslator) -> PlanRequest:
    """Return the request with translated cursors, which bound nothing from above.

    A mirror that went back copied records below the cursor once more, behind it; pairs need not show that,
    for a copy is there before its pair.  The sink has applied those: nobody may say that they are not in the
    database.
    """
    if request.cursors is None:
        return request
    cursors: dict[str, dict[int, int]] = {}
    unbound: set[TopicPartition] = set()
    for topic, numbers in request.cursors.items():
        for number, offset in numbers.items():
            at = TopicPartition(topic, number)
            cursors.setdefault(topic, {})[number] = translator.cursor(at, offset).lower
            unbound.add(at)
    return replace(request, cursors=cursors, unbound=frozenset(unbound))


def _tail(
    translator: FenceTranslator,
    newest: Fence | None,
    start: Fence | None,
    partitions: tuple[TranslatedPartition, ...],
) -> tuple[TranslatedPartition, ...]:
    if newest is None or newest is start:
        return partitions
    return translator.unmirrored(newest)
