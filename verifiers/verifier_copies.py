"""Each region's own copies of what verifiers put: logs and checkpoints, reports, fingerprints.

Each copy is opened with the verifier's public key, which its log's first entry names, and has the key's id.
What no key opens a person signed: it has the digest that its name says.  Reference: docs/format.md §6.8, §10.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Final

from pitr.errors import MalformedValue, NotAuthentic, PitrError
from pitr.layout import fingerprint_lsn, log_number, period_report_prefix, report_prefix
from pitr.pipeline.sign import Verifier, open_typed, payload_sha256
from pitr.repository import Repository
from pitr.verified import get_verified
from storage.store import CopyDamaged, StoreError
from verifiers.checkpoint import log_origin, open_checkpoint
from verifiers.fingerprint import open_fingerprint
from verifiers.log_entry import open_entry
from verifiers.log_reader import key_ids, logged_key
from verifiers.period_series import logged_periods
from verifiers.region_copies import CopyCheckRun
from verifiers.statement import PAYLOAD_TYPE, open_period, open_report

KINDS: Final = ("log", "reports", "fingerprints")


def check_verifier_copies(run: CopyCheckRun) -> None:
    """Verify and compare them in each region that answers.  Raises StoreError if none can be listed."""
    store = run.repository.store
    known: dict[str, Verifier | None] = {}
    # Filled by the logs, which are read first.
    pages: dict[str, str] = {}
    for kind in KINDS:
        for key_id in key_ids(store, kind):
            if key_id not in known:
                known[key_id] = _key_or_none(run.repository, key_id)
            verifier, prefix = known[key_id], f"{kind}/{key_id}/"
            if verifier is not None:
                run.check_records(prefix, verify=partial(verify_verifier_record, verifier, pages))
                run.end_records()
            # Each is judged by its signature: sizes need no vote.
            run.compare_listings(prefix, has_signed_size=True)


def _key_or_none(repository: Repository, key_id: str) -> Verifier | None:
    """Return the key that the log names; None where no region has it: its copies' own finding."""
    try:
        return logged_key(repository.store, key_id)
    except (PitrError, StoreError):
        return None


def verify_verifier_record(
    verifier: Verifier, pages: dict[str, str], repository: Repository, key: str
) -> bytes:
    """Verify the object under ``key`` as ``repository``'s store has it; return what it says, as a digest.

    ``pages`` are the digests of period reports' pages, which only the log's entries have: they are taken
    from those that are verified.  A page that no entry tells of can only be compared with the other regions'.
    Raises CopyDamaged, and ObjectMissing and other errors of the store.
    """
    try:
        return get_verified(repository.store, key, partial(_said, verifier, pages, repository, key))
    except PitrError as cause:
        raise CopyDamaged(cause.detail or cause.message) from cause
    except ValueError as cause:
        raise CopyDamaged("its name is none that the format knows") from cause


def _said(verifier: Verifier, pages: dict[str, str], repository: Repository, key: str, body: bytes) -> bytes:
    kind, _, what, *rest = key.split("/")
    origin = log_origin(repository.repository_id, verifier)
    is_in_place = True
    if (kind, what) == ("log", "entry"):
        entry = open_entry(body, verifier)
        is_in_place = (entry.log, entry.sequence + 1) == (origin, log_number(key))
        for one in logged_periods([entry] if is_in_place else []):
            pages[f"{one.prefix(verifier.key_id)}html"] = one.html_sha256
    elif (kind, what) == ("log", "checkpoint"):
        is_in_place = open_checkpoint(body.decode("utf-8", "replace"), verifier, origin).size == log_number(
            key
        )
    elif kind == "fingerprints":
        fingerprint = open_fingerprint(body, verifier)
        is_in_place = (fingerprint.repository, str(fingerprint.system_identifier), fingerprint.lsn) == (
            repository.repository_id,
            what,
            fingerprint_lsn(key),
        )
    elif kind == "reports" and len(rest) == 2:
        judge = _is_period_part if rest[0].startswith("period-") else _is_report_part
        is_in_place = judge(verifier, pages, key, rest[1], body)
    else:
        raise MalformedValue(f"not the key of what a verifier puts: {key!r}")
    if not is_in_place:
        raise NotAuthentic("it lies in the place of another")
    return hashlib.sha256(body).digest()


def _is_period_part(verifier: Verifier, pages: Mapping[str, str], key: str, name: str, body: bytes) -> bool:
    """Tell whether what belongs to a period report lies where it must.  Raises as below."""
    if name == "report":
        fields = open_period(body, verifier).predicate
        system, report_id = int(fields["scope"]["system_identifier"]), fields["identity"]["report_id"]
        return key == period_report_prefix(verifier.key_id, system, report_id) + name
    if name == "html":
        return pages.get(key) in (None, hashlib.sha256(body).hexdigest())
    raise MalformedValue(f"not a part of a period report: {name[:80]!r}")


def _is_report_part(verifier: Verifier, _pages: Mapping[str, str], key: str, name: str, body: bytes) -> bool:
    """Tell whether what belongs to a report lies where it must.  Raises NotAuthentic, MalformedValue."""
    if name == "report":
        fields = open_report(body, verifier).predicate
        system, number = int(fields["scope"]["system_identifier"]), fields["identity"]["series_seq"]
        return key == report_prefix(verifier.key_id, system, number) + name
    if name == "test-result":
        open_typed(body, verifier, PAYLOAD_TYPE)
        return True
    what, _, digest = name.partition("-")
    if what == "html":
        return hashlib.sha256(body).hexdigest()[:16] == digest
    if what == "certification":
        return payload_sha256(body).hex()[:16] == digest
    raise MalformedValue(f"not a part of a report: {name[:80]!r}")
