"""Probes of the regions, the repository in them, and the keys: what is promised is tried out.

The two objects that are written have keys that depend on the repository and the writer only, so that a
host that may not delete leaves two small objects behind, however often it is probed.  Only where a region
has the mark of another one a third object tells, each time, whether they are one store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime

from pitr.errors import PitrError
from pitr.layout import ArchiveId
from pitr.pipeline.keys import DataKey, Identity, Recipient, open_envelope, seal_envelope
from pitr.pipeline.sign import Verifier
from pitr.repository import Repository
from storage.regions import Region
from storage.store import ObjectConflict, ObjectMissing, ObjectStore, StoreError
from verifiers.base import Finding, Severity

PROBE_BODY = b"pitr probe 1\n"
_MARK_BYTES = 16
_OTHER_BODY = b"pitr probe: a store that keeps this one overwrites objects\n"


def probe_key(repository: str, writer: Verifier) -> str:
    """Return the key of the object that ``writer`` probes with."""
    return f"probe/{repository}/{writer.key_id}"


def probe_region(region: Region, key: str) -> list[Finding]:
    """Write, read, list and try to overwrite one object."""
    check = f"region.{region.name}"
    steps: list[tuple[str, Callable[[ObjectStore, str], str | None]]] = [
        ("write", _write),
        ("read", _read),
        ("list", _list),
        ("create-only", _overwrite),
    ]
    findings = []
    for name, step in steps:
        try:
            wrong = step(region.store, key)
        except StoreError as error:
            hint = "check the region's url and credentials; its owner must allow put, get and list"
            findings.append(Finding(f"{check}.{name}", Severity.FAIL, region.name, str(error), hint))
            break
        if wrong is not None:
            hint = "this store cannot keep what it has promised: use another one"
            findings.append(Finding(f"{check}.{name}", Severity.FAIL, region.name, wrong, hint))
        else:
            findings.append(Finding(f"{check}.{name}", Severity.OK, region.name, f"{name} works"))
    return findings


def probe_places(regions: Sequence[Region], key: str, random: Callable[[int], bytes]) -> list[Finding]:
    """Tell which regions are one place under two names: a copy counts for each of them, and is only one.

    Each region keeps a mark of its own beside the probe.  ``pitr repair`` or a copied region may have brought
    another's mark, so equal marks are only a reason to put something new into one and look into the other.
    """
    findings = []
    seen: dict[bytes, list[Region]] = {}
    for region in regions:
        check = f"region.{region.name}.place"
        try:
            known = seen.setdefault(_mark(region.store, f"{key}-place", random), [])
            twin = next((one for one in known if _is_one_place(one.store, region.store, key, random)), None)
        except StoreError as error:
            hint = "see the region's other findings"
            findings.append(Finding(check, Severity.FAIL, region.name, str(error), hint))
            continue
        known.append(region)
        if twin is not None:
            hint = "give each region a store of its own, or leave one of the two out of the configuration"
            text = f"what is put into region {twin.name} is in here too: they are one store under two names"
            findings.append(Finding(check, Severity.FAIL, region.name, text, hint))
        else:
            findings.append(Finding(check, Severity.OK, region.name, "not the store of another region"))
    return findings


def _mark(store: ObjectStore, key: str, random: Callable[[int], bytes]) -> bytes:
    """Return the region's mark, made now if it has none."""
    try:
        return store.get(key)
    except ObjectMissing:
        # Another doctor may be as far as this one; whoever is first has made it.
        with suppress(ObjectConflict):
            store.put(key, random(_MARK_BYTES).hex().encode())
        return store.get(key)


def _is_one_place(one: ObjectStore, other: ObjectStore, key: str, random: Callable[[int], bytes]) -> bool:
    fresh = f"{key}-place-{random(_MARK_BYTES).hex()}"
    one.put(fresh, PROBE_BODY)
    try:
        other.get(fresh)
    except ObjectMissing:
        return False
    finally:
        # A host may not; then it stays.
        with suppress(StoreError):
            one.delete(fresh)
    return True


def _write(store: ObjectStore, key: str) -> str | None:
    store.put(key, PROBE_BODY)
    # Equal bytes again must succeed: a put whose answer was lost is repeated.
    store.put(key, PROBE_BODY)
    return None


def _read(store: ObjectStore, key: str) -> str | None:
    if store.get(key) != PROBE_BODY:
        return "another content came back than was put"
    if store.get_range(key, 5, 5) != PROBE_BODY[5:10]:
        return "a ranged read gave other bytes"
    return None


def _list(store: ObjectStore, key: str) -> str | None:
    keys = [info.key for info in store.list_objects(key)]
    return None if key in keys else "a listing lacks an object that was put"


def _overwrite(store: ObjectStore, key: str) -> str | None:
    try:
        store.put(key, _OTHER_BODY)
    except ObjectConflict:
        return None
    return "an object could be overwritten: conditional writes are not enforced"


def probe_repository(
    regions: Sequence[Region], repository_id: str, root: Verifier, archive: ArchiveId | None, writer: Verifier
) -> list[Finding]:
    """Tell whether each region has the repository's record, and the epoch that lets ``writer`` write.

    ``archive`` None: the server could not be asked.
    """
    findings = []
    for region in regions:
        check = f"repository.{region.name}"
        try:
            repository = Repository.open(region.store, root, repository_id=repository_id)
            if archive is not None and repository.verifier(archive) != writer:
                hint = "use the signing key of this host, or start a new epoch: pitr init --identity FILE"
                text = f"epoch {archive} is written by another key"
                findings.append(Finding(check, Severity.FAIL, region.name, text, hint))
                continue
        except (PitrError, StoreError) as error:
            advice = error.hint if isinstance(error, PitrError) else "see the region's own findings"
            findings.append(Finding(check, Severity.FAIL, region.name, str(error), advice))
            continue
        text = "the repository's record is signed by root" + (
            "" if archive is None else f"; epoch {archive} is ours"
        )
        findings.append(Finding(check, Severity.OK, region.name, text))
    return findings


def probe_envelope(
    recipients: Sequence[Recipient],
    identity: Identity,
    repository: str,
    *,
    now: datetime,
    random: Callable[[int], bytes],
) -> Finding:
    """Seal a data key to the recipients and open it with ``identity``: can it read what the host writes?"""
    check = "keys.round_trip"
    key = DataKey.generate(random)
    try:
        envelope = seal_envelope(
            key, recipients, repository=repository, archive=ArchiveId(1, 1), purpose="wal", created_at=now
        )
        is_same = open_envelope(envelope, identity) == key
    except PitrError as error:
        return Finding(check, Severity.FAIL, "identity", str(error), error.hint)
    if not is_same:
        return Finding(check, Severity.FAIL, "identity", "it opens another key than was sealed", None)
    return Finding(check, Severity.OK, "identity", "it opens what is sealed to the recipients")
