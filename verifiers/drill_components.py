"""The parts that a recovery needs, each tried alone: regions, keys, one piece of WAL, slot, settings.

Nothing is restored, and nothing is deleted: a region keeps one small object for each day that it was tried.
Reference: docs/drills.md, "Components".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Final

from pitr.catalogue.wal_records import IndexedHeader, WalIndexRecord, piece_numbers
from pitr.errors import PitrError
from pitr.layout import PieceKey, SegmentKey, wal_index_range
from pitr.listed import named_objects
from pitr.pipeline.sign import Verifier
from pitr.repository import Repository
from pitr.wal_reader import DataKeySource
from storage.regions import Region
from verifiers.base import Finding, Severity
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.store_probes import probe_key, probe_region

SLOT_CHECKS: Final = ("server.slot", "server.permanent_slot")
_SHOWN_MAX: Final = 8


def check_regions(
    regions: Mapping[str, Callable[[], Region]],
    repository: str,
    verifier: Verifier,
    day: date,
    maker: CheckMaker,
) -> list[CheckResult]:
    """D01, of each region alone: put, get, list, and that nothing can be overwritten."""
    key = f"{probe_key(repository, verifier)}-drill-{day:%Y%m%d}"

    def judge(opening: Callable[[], Region]) -> Judgement:
        found = probe_region(opening(), key)
        expected = "an object is put, read back, listed, and cannot be overwritten"
        done = ", ".join(one.id.rpartition(".")[2] for one in found if one.severity is Severity.OK)
        wrong = [one.message for one in found if one.severity is Severity.FAIL]
        if wrong:
            return failed(expected, f"done: {done or 'nothing'}", "; ".join(wrong))
        return passed(expected, f"done: {done}")

    return [
        maker.run(
            f"D01.{name}",
            "put, get, list and put again one object",
            partial(judge, opening),
            title=f"region {name} alone keeps what is put into it, and gives it back",
        )
        for name, opening in regions.items()
    ]


def check_keys(probe: Callable[[], Finding], maker: CheckMaker) -> CheckResult:
    """D02: a data key is sealed to the recipients, and opened with the identity."""

    def judge() -> Judgement:
        finding = probe()
        expected = "the identity opens a key that was sealed to the recipients"
        if finding.severity is Severity.FAIL:
            return failed(expected, "it does not", finding.message)
        return passed(expected, finding.message)

    return maker.run("D02", "seal a data key to the recipients and open it", judge)


def choose_piece(keys: Sequence[PieceKey | SegmentKey], run_id: str) -> PieceKey | SegmentKey:
    """Return the one that a run reads; nobody chooses the run's id.  Raises PitrError if there is none."""
    if not keys:
        raise PitrError("there is no archived WAL after the newest backup yet")
    number = int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8], "big")
    return keys[number % len(keys)]


def check_piece(
    alone: Repository,
    region: str,
    choose: Callable[[], PieceKey | SegmentKey],
    data_keys: DataKeySource,
    maker: CheckMaker,
) -> CheckResult:
    """D03: one piece or segment, read from one region alone, opened, and compared with the index.

    WAL of the last hour is in no index yet; then its own signed header is all that it is compared with.
    """

    def judge() -> Judgement:
        key = choose()
        header = alone.wal.header(key)
        content = alone.read_wal(key, data_keys)
        size_bytes = header.header.end - header.header.start
        record = find_index(alone, key)
        entry = None if record is None else _entry_of(record, key)
        expected = f"{size_bytes} bytes of WAL from {header.header.start}, as the index has them"
        observed = f"{key} of {region}: {len(content)} bytes opened"
        if len(content) != size_bytes:
            return failed(expected, observed, "it has another length than its header says")
        is_indexed = entry is not None or (record is not None and isinstance(key, PieceKey))
        if is_indexed and (entry is None or entry.header_sha256 != header.header_sha256):
            return failed(expected, observed, "the index has another object than the region")
        with_what = "no index has it yet: compared with its signed header" if entry is None else "as indexed"
        return passed(expected, f"{observed}, {with_what}", digest=hashlib.sha256(content).digest())

    return maker.run("D03", "fetch and open one archived piece of WAL", judge)


def find_index(alone: Repository, key: PieceKey | SegmentKey) -> WalIndexRecord | None:
    """Return the index whose pieces are those of an object, or end it; None if there is none yet.

    A segment may stand in a later one: whoever asks takes its absence for no answer.
    """
    _, last = piece_numbers(alone.wal.header(key).header)
    listing = alone.store.list_objects(f"walindex/{key.archive}/")
    for info, (first_piece, last_piece) in named_objects(listing, wal_index_range):
        if first_piece <= last <= last_piece:
            return alone.wal.index(info.key, key.archive)
    return None


def _entry_of(record: WalIndexRecord, key: PieceKey | SegmentKey) -> IndexedHeader | None:
    return next((one for one in (*record.pieces, *record.segments) if one.key == key), None)


def check_findings(
    check: str, findings: Sequence[Finding] | None, why_not: str, maker: CheckMaker
) -> CheckResult:
    """D04 or D05: what ``doctor`` says; SKIPPED with ``why_not`` where it was not asked."""
    if findings is None:
        return maker.skipped(check, why_not)

    def judge() -> Judgement:
        assert findings is not None
        bad = {severity: _said(findings, severity) for severity in (Severity.FAIL, Severity.WARN)}
        expected = "no finding"
        observed = f"{len(findings)} checks of doctor"
        evidence = "\n".join(f"{one.id} {one.severity.value} {one.message}" for one in findings).encode()
        if bad[Severity.FAIL]:
            return failed(expected, observed, "; ".join(bad[Severity.FAIL][:_SHOWN_MAX]), evidence)
        if bad[Severity.WARN] or not findings:
            said = "; ".join(bad[Severity.WARN][:_SHOWN_MAX]) or "doctor says nothing of it"
            return Judgement(Outcome.WARNED, expected, observed, said, evidence)
        return passed(expected, observed, evidence)

    return maker.run(check, "pitr doctor", judge)


def _said(findings: Sequence[Finding], severity: Severity) -> list[str]:
    return [f"{one.id}: {one.message}" for one in findings if one.severity is severity]
