"""The steps of ``pitr init``: a new repository, or a new writer epoch in one that exists.

First everything is checked that can be (``cli.setup_check``); then each step may be repeated: keys that are
there are taken, equal records are put again, and nothing is ever written over.  The configuration comes last,
so that a half-made set-up is not taken for a whole one.  A host that has one already keeps it; there it is
seen whether the server still goes on from what is archived (``cli.setup_epoch``).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime

from cli.certified_past import unproven
from cli.config_mistakes import Mistake
from cli.config_schema import check_tables
from cli.config_template import NewConfig, render_config
from cli.errors import UsageRefused
from cli.key_files import (
    read_identity,
    remove_staged,
    write_secret,
)
from cli.lock import RunLock
from cli.regions import create_regions, open_reading, open_regions
from cli.server_past import ServerPast, read_server
from cli.settings import LOCK_NAME
from cli.setup_check import REPEAT, SetupGround, check_ground, refusal, told_in_setup
from cli.setup_epoch import WrittenEpoch, put_epoch
from cli.setup_keys import HostKeyFiles
from cli.setup_request import SetupRequest, SetupResult
from pitr.catalogue.records import EpochRecord, RepositoryRecord
from pitr.errors import KeyMissing, PitrError, ServerRefused
from pitr.gate_folder import GateFolder
from pitr.pipeline.keys import Identity, IdentityFile, Recipient, best_suite
from pitr.postgres.replication import ReplicationConnection
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from storage.regions import Region
from storage.store import StoreError
from storage.synced_file import sync_directory


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
    if request.kept is None and request.config_path.exists() and not _is_own_work(request):
        raise UsageRefused(
            f"{request.config_path} exists already",
            detail="a set-up is never written over",
            hint=f"pitr -c {request.config_path} doctor checks it; a second cluster needs another --dir;"
            " after a restore give --identity without --pg and --region",
        )
    ground = check_ground(request)
    _check_kept(request, ground)
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
    keys = HostKeyFiles(request.signing_key_path)
    keys.read_or_make(random)
    recipients = _recipients(identity.identity, request.recipients)
    settings = request.region_settings
    regions = create_regions(settings) if request.creates_directories else open_regions(settings)
    _put_repository(regions, ground, identity, recipients, now())
    say(f"repository {identity.repository} is in {', '.join(region.name for region in regions)}")
    if request.streams:
        start = _ensure_slot(request.dsn, request.slot)
        say(f"slot {request.slot!r} keeps WAL from {start} on")
    server = read_server(request.dsn, streams=request.streams)
    if not request.streams:
        # No slot keeps anything: what comes first is the segment that the server writes now.
        flushed = server.identity.flushed.offset
        start = LSN(max(flushed - flushed % server.segment_bytes, server.segment_bytes))
        if RunLock.holder(request.state_dir / LOCK_NAME) is None:
            GateFolder(request.gate_dir).forget_handed()
        say(f"nothing is streamed; archive_command is to hand over WAL from {start} on")
    written = _put_epoch(request, server, regions, identity, keys, start, now(), random)
    record = written.record
    if written.left is not None:
        say(f"the server does not go on from what this host archived: {written.left}")
        say(f"{keys.path} is a new key; the old one is kept beside it as {keys.path.name}.epoch-N")
    say(_origin(record))
    if written.is_new and (lacking := unproven(server, record.parent)) is not None:
        say(lacking)
    is_kept = request.config_path.exists()
    is_joined = ground.identity is not None and ground.identity.is_given
    path = request.identity_out if ground.identity is None else ground.identity.path
    result = SetupResult(
        archive=record.archive,
        parent=record.parent,
        identity=identity,
        identity_path=path,
        config_path=request.config_path,
        is_new_repository=not is_joined and not is_kept,
        is_new_epoch=written.is_new,
        is_config_kept=is_kept,
    )
    # Before the configuration: a run that is killed after it is over, and nobody would see the keys again.
    hand_over(result)
    if not result.is_config_kept:
        _write_config(request, identity, recipients)
    return result


def _check_kept(request: SetupRequest, ground: SetupGround) -> None:
    kept, identity = request.kept, ground.identity
    if kept is None or identity is None:
        return
    if (kept.repository.repository, kept.keys.root) != (identity.file.repository, str(identity.file.root)):
        raise KeyMissing(
            f"{identity.path} is not the identity of the repository in {kept.path}",
            detail=f"it is of {identity.file.repository}, the configuration of {kept.repository.repository}",
            hint="give the identity of the recovery sheet, or another --dir",
        )


def _put_epoch(
    request: SetupRequest,
    server: ServerPast,
    regions: Sequence[Region],
    identity: IdentityFile,
    keys: HostKeyFiles,
    start: LSN,
    now: datetime,
    random: Callable[[int], bytes],
) -> WrittenEpoch:
    store = open_reading(regions, request.quorum)
    try:
        return put_epoch(
            server,
            Repository(store, identity.repository, identity.root),
            regions,
            identity,
            keys,
            start,
            state_dir=request.state_dir if request.identity_in is not None else None,
            now=now,
            random=random,
            certificate=request.certificate,
        )
    finally:
        store.close()


def _origin(record: EpochRecord) -> str:
    """Return the archive in words, and where it left the one before."""
    if record.parent is not None:
        return f"archive {record.archive}, which left epoch {record.parent.epoch} at {record.parent.lsn}"
    if record.archive.epoch == 1:
        return f"archive {record.archive}"
    return f"archive {record.archive}; no older epoch is proven to be its past: --archive restores from those"


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
            wal_source=request.wal_source,
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
