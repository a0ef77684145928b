"""C11: the restored tables against those of the source at the same LSN, as a fingerprint has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pitr.errors import TargetRefused
from pitr.restore_plan import RestorePlan
from pitr.wal.lsn import LSN
from verifiers.check import CheckResult
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.fingerprint import Fingerprint
from verifiers.scratch_server import ScratchServer
from verifiers.table_digests import cluster_digests, differences

_SHOWN_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """A fingerprint at or after the target, and the plan that leads there from the same backup."""

    fingerprint: Fingerprint
    plan: RestorePlan


def choose_comparison(
    lsns: Iterable[LSN], read: Callable[[LSN], Fingerprint], lead: Callable[[LSN], RestorePlan]
) -> Comparison | str:
    """Return the first fingerprint that the way leads to, else why there is none.

    ``read`` gets a fingerprint, ``lead`` the plan to its LSN.  One of another timeline, or of another
    epoch, is of a server that had left the way by then, as after a failover: its rows are others, and
    rightly so.
    """
    why = "no fingerprint of the source was taken after the target (pitr fingerprint)"
    for lsn in lsns:
        try:
            plan = lead(lsn)
        except TargetRefused as cause:
            why = f"no way leads to the fingerprint at {lsn}: {cause}"
            continue
        fingerprint = read(lsn)
        if _is_on_way(fingerprint, plan):
            return Comparison(fingerprint, plan)
        of = "" if fingerprint.epoch is None else f" of writer epoch {fingerprint.epoch}"
        why = (
            f"the fingerprint at {lsn} was taken on timeline {fingerprint.timeline}{of},"
            " which is not on the way"
        )
    return why


def _is_on_way(fingerprint: Fingerprint, plan: RestorePlan) -> bool:
    return any(
        span.timeline == fingerprint.timeline
        and fingerprint.epoch in (None, span.archive.epoch)
        and span.start <= fingerprint.lsn
        and (span.end is None or fingerprint.lsn <= span.end)
        for span in plan.spans
    )


def check_source(
    server: ScratchServer, fingerprint: Fingerprint, replayed: LSN | None, maker: CheckMaker
) -> CheckResult:
    """C11, of a server that is paused at the fingerprint's LSN.  Where there is one, it is required."""

    def judge() -> Judgement:
        expected = (
            f"at {fingerprint.lsn} the {len(fingerprint.digests.tables)} tables and"
            f" {len(fingerprint.digests.schemas)} schemas of the source's standby"
        )
        if replayed != fingerprint.lsn:
            said = f"replay is at {replayed}"
            return failed(expected, said, "no comparison is fair at another LSN")
        found = cluster_digests(server.databases(), server.session)
        differing = differences(fingerprint.digests, found)
        rows = sum(one.rows for one in found.tables)
        observed = f"{len(found.tables)} tables with {rows} rows"
        lines = [f"{one.table} {one.rows} {one.digest}" for one in found.tables]
        lines += [f"{name} {digest}" for name, digest in found.schemas]
        evidence = "\n".join(lines).encode("utf-8", "surrogateescape")
        if differing:
            more = f"; and {len(differing) - _SHOWN_MAX} more" if len(differing) > _SHOWN_MAX else ""
            return failed(expected, observed, "; ".join(differing[:_SHOWN_MAX]) + more, evidence)
        return passed(expected, f"{observed}, all alike", evidence)

    return maker.run("C11", f"compare with the fingerprint at {fingerprint.lsn}", judge, is_required=True)
