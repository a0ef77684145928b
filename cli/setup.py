"""The steps of ``pitr init``: a new repository, or a new writer epoch in one that exists.

First everything is checked that can be (``cli.setup_check``); then each step may be repeated: keys that are
there are taken, equal records are put again, and nothing is ever written over.  The configuration comes last,
so that a half-made set-up is not taken for a whole one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from cli.config_mistakes import Mistake
from cli.config_schema import check_tables
from cli.config_template import NewConfig, render_config
from cli.epochs import ArchivedPast, find_parent
from cli.errors import UsageRefused
from cli.key_files import (
    read_identity,
    read_signing_key,
    remove_staged,
    sync_directory,
    write_secret,
)
from cli.regions import create_regions, open_reading, open_regions
from cli.setup_check import REPEAT, SetupGround, check_ground, refusal, told_in_setup
from cli.setup_request import SetupRequest, SetupResult
from pitr.catalogue.records import EpochParent, EpochRecord, RepositoryRecord
from pitr.errors import KeyMissing, PitrError, ServerRefused
from pitr.layout import ArchiveId
from pitr.pipeline.keys import Identity, IdentityFile, Recipient, best_suite
from pitr.pipeline.sign import Signer
from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.server import ServerFacts
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId
from storage.regions import Region
from storage.store import StoreError


def set_up(
    request: SetupRequest,
    *,
    now: Callable[[], datetime],
    random: Callable[[int], bytes],
    say: Callable[[str], None],
    hand_over: Callable[[SetupResult], None],
) -> SetupResult:
    """Check, and carry out every step.  ``hand_over`` shows the keys before the configuration is written.

    The same call again, after an error or a kill, goes on from what there is.  Raises UsageRefused over
    another set-up, SetupRefused with all that is in the way.
    """
    if request.config_path.exists() and not _is_own_work(request):
        raise UsageRefused(
            f"{request.config_path} exists already",
            detail="a set-up is never written over",
            hint=f"pitr -c {request.config_path} doctor checks it; a second cluster needs another --dir",
        )
    ground = check_ground(request)
    say(f"PostgreSQL {ground.facts.major}, system identifier {ground.facts.system_identifier}")
    try:
        return _make(request, ground, now, random, say, hand_over)
    except (PitrError, StoreError, OSError) as error:
        failure = told_in_setup(error, f"mend that, {REPEAT}")
        raise refusal([failure], "what was made before stays, and is gone on from") from error


def _make(
    request: SetupRequest,
    ground: SetupGround,
    now: Callable[[], datetime],
    random: Callable[[int], bytes],
    say: Callable[[str], None],
    hand_over: Callable[[SetupResult], None],
) -> SetupResult:
    for directory in (request.directory, request.state_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = _identity(request, ground, random)
    signer = _signing_key(request.signing_key_path, random)
    recipients = _recipients(identity.identity, request.recipients)
    settings = request.region_settings
    regions = create_regions(settings) if request.creates_directories else open_regions(settings)
    _put_repository(regions, ground, identity, recipients, now())
    say(f"repository {identity.repository} is in {', '.join(region.name for region in regions)}")
    slot_start = _ensure_slot(request.dsn, request.slot)
    say(f"slot {request.slot!r} keeps WAL from {slot_start} on")
    archive, parent, is_new_epoch = _put_epoch(
        request, regions, identity, signer, ground.facts, slot_start, now()
    )
    say(
        f"archive {archive}"
        + ("" if parent is None else f", which left epoch {parent.epoch} at {parent.lsn}")
    )
    is_joined = ground.identity is not None and ground.identity.is_given
    path = request.identity_out if ground.identity is None else ground.identity.path
    result = SetupResult(archive, parent, identity, path, request.config_path, not is_joined, is_new_epoch)
    # Before the configuration: a run that is killed after it is over, and nobody would see the keys again.
    hand_over(result)
    if not request.config_path.exists():
        _write_config(request, identity, recipients)
    return result


def _is_own_work(request: SetupRequest) -> bool:
    """Tell whether the configuration is what this request leads to: a run was killed after its last step."""
    try:
        identity = read_identity(request.identity_in or request.identity_out)
        text = request.config_path.read_text(encoding="utf-8")
    except (KeyMissing, OSError, UnicodeDecodeError):
        return False
    return text == _render(request, identity, _recipients(identity.identity, request.recipients))


def mistakes_of(request: SetupRequest, random: Callable[[int], bytes]) -> list[Mistake]:
    """Return what the configuration's schema would refuse in the file that this request leads to."""
    stand_in = Identity.generate(random)
    file = IdentityFile(stand_in, random(16).hex(), stand_in.root_signer().public)
    text = _render(request, file, _recipients(stand_in, request.recipients))
    path = request.config_path.absolute()
    checked = check_tables(tomllib.loads(text), base=path.parent, path=path)
    return checked if isinstance(checked, list) else []


def _identity(request: SetupRequest, ground: SetupGround, random: Callable[[int], bytes]) -> IdentityFile:
    """Take the identity that there is, or make one; its file is durable before anything is sealed to it."""
    if ground.identity is not None:
        if ground.identity.is_left:
            remove_staged(ground.identity.path)
        return ground.identity.file
    identity = Identity.generate(random)
    file = IdentityFile(identity, random(16).hex(), identity.root_signer().public)
    request.identity_out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_secret(request.identity_out, file.render())
    return file


def _signing_key(path: Path, random: Callable[[int], bytes]) -> Signer:
    if path.exists():
        remove_staged(path)
        return read_signing_key(path)
    signer = Signer.generate(random)
    write_secret(path, signer.text() + "\n")
    return signer


def _recipients(identity: Identity, others: Sequence[Recipient]) -> tuple[Recipient, ...]:
    own = identity.recipient(best_suite())
    return (own, *(recipient for recipient in dict.fromkeys(others) if recipient != own))


def _put_repository(
    regions: Sequence[Region],
    ground: SetupGround,
    identity: IdentityFile,
    recipients: Sequence[Recipient],
    now: datetime,
) -> None:
    """See that every region has the same repository record; a region that is new to it gets it."""
    found = next((look.record for look in ground.looks if look.record is not None), None)
    texts = tuple(str(recipient) for recipient in recipients)
    record = found or RepositoryRecord(identity.repository, now, str(identity.root), texts)
    # Equal bytes are put again where it is: whoever put them may have been killed before they were durable.
    for region in regions:
        Repository.create(region.store, record, identity.identity.root_signer())


def _ensure_slot(dsn: str, name: str) -> LSN:
    """Make the slot if it is not there; return where the WAL begins that it keeps.

    It must be there before the first base backup: WAL is kept from then on, whatever happens to us.
    """
    with closing(ReplicationConnection.connect(dsn)) as connection:
        state = connection.read_slot(name)
        if state is None:
            connection.create_slot(name)
            state = connection.read_slot(name)
        if state is None or state.restart is None:
            raise ServerRefused(
                f"slot {name!r} keeps no WAL",
                detail="it was invalidated, or is a temporary one",
                hint=f"SELECT pg_drop_replication_slot('{name}'), then repeat",
            )
        return state.restart


def _read_history(dsn: str, timeline: TimelineId) -> TimelineHistory:
    if timeline == TimelineId(1):
        return TimelineHistory(timeline)
    with closing(ReplicationConnection.connect(dsn)) as connection:
        return TimelineHistory.parse(timeline, connection.timeline_history(timeline))


def _put_epoch(
    request: SetupRequest,
    regions: Sequence[Region],
    identity: IdentityFile,
    signer: Signer,
    facts: ServerFacts,
    slot_start: LSN,
    now: datetime,
) -> tuple[ArchiveId, EpochParent | None, bool]:
    """Let this host's key write: take its epoch if it has the newest, else make the next one."""
    store = open_reading(regions, request.quorum)
    try:
        repository = Repository(store, identity.repository, identity.root)
        epochs = [one for one in repository.archives() if one.system_identifier == facts.system_identifier]
        newest = max(epochs, key=lambda archive: archive.epoch, default=None)
        parent: EpochParent | None = None
        if newest is not None and repository.verifier(newest) == signer.public:
            record = repository.epoch(newest)
        else:
            if newest is not None:
                history = _read_history(request.dsn, facts.timeline)
                head = repository.latest_head(newest)
                past = ArchivedPast(
                    newest.epoch, repository.histories(newest), head.wal_end if head is not None else None
                )
                parent = find_parent(history, past, slot_start)
            archive = ArchiveId(facts.system_identifier, 1 if newest is None else newest.epoch + 1)
            record = EpochRecord(identity.repository, archive, now, str(signer.public), parent)
    finally:
        store.close()
    # Also where it is there: a region that was down when the epoch was made gets its record now.
    for region in regions:
        Repository(region.store, identity.repository, identity.root).write_epoch(
            record, identity.identity.root_signer()
        )
    return record.archive, record.parent, record.archive != newest


def _render(request: SetupRequest, identity: IdentityFile, recipients: Sequence[Recipient]) -> str:
    return render_config(
        NewConfig(
            cluster=request.cluster,
            dsn=request.dsn,
            slot=request.slot,
            repository=identity.repository,
            root=str(identity.root),
            recipients=tuple(str(recipient) for recipient in recipients),
            quorum=request.quorum,
            regions=request.regions,
            signing_key_file=request.signing_key_path.absolute(),
            state_dir=request.state_dir.absolute(),
            metrics_listen=request.metrics_listen,
            timezone=request.timezone,
        )
    )


def _write_config(request: SetupRequest, identity: IdentityFile, recipients: Sequence[Recipient]) -> None:
    text = _render(request, identity, recipients)
    staged = request.config_path.with_suffix(".toml.new")
    staged.write_text(text, encoding="utf-8")
    staged.chmod(0o640)
    descriptor = os.open(staged, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    staged.rename(request.config_path)
    sync_directory(request.config_path.parent)
