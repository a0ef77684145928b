"""What ``pitr init`` looks at before it makes anything: server, places on this host, keys, regions.

Everything is looked at, so that one message tells all that is in the way.  Nothing is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cli.errors import ExitCode, Failure, SetupRefused, describe, rule_for
from cli.key_files import read_identity, read_signing_key
from cli.regions import open_regions
from cli.settings import RegionSettings
from cli.setup_identity import KnownIdentity, RegionLook, check_identity
from cli.setup_request import SetupRequest
from pitr.errors import PitrError, ServerRefused
from pitr.gate_script import archive_command
from pitr.postgres.server import Server, ServerFacts
from pitr.repository_record import find_repository_record
from storage.local import DirectoryStore
from storage.store import StoreError, StoreUnavailable
from storage.url import DirectoryLocation, parse_region_url
from verifiers.archiver import ArchiverWish
from verifiers.base import Severity
from verifiers.probes import probe_server

REPEAT = "then repeat the same command"
# What the doctor may find wrong without keeping a set-up from being made: it can be mended later.
_LATER = ("server.clock", "server.data_directory", "server.archive.")


class _NoRegion(StoreUnavailable):
    """A directory is not there, or is none that objects may be put into."""


@dataclass(frozen=True, slots=True)
class SetupGround:
    """What was found: the server, an identity that there is already, and what each region holds."""

    facts: ServerFacts
    identity: KnownIdentity | None
    looks: tuple[RegionLook, ...]


def check_ground(request: SetupRequest) -> SetupGround:
    """Look at everything.  Raises SetupRefused with all that is in the way; nothing was made."""
    failures: list[Failure] = []
    facts = _server(request, failures)
    places = [request.state_dir, request.signing_key_path]
    if request.identity_in is None:
        places.append(request.identity_out)
    for path in places:
        failures += _place(path)
    failures += _signing_key(request.signing_key_path)
    identity = _identity(request, failures)
    looks = [_region(setting, request.creates_directories, failures) for setting in request.region_settings]
    found = tuple(look for look in looks if look is not None)
    # Only of all regions together can be said whose they are, and only with the identity that is meant.
    if len(found) == len(looks) and not isinstance(identity, Failure):
        try:
            has_key = request.signing_key_path.exists()
            check_identity(identity, found, request.quorum, has_signing_key=has_key)
        except PitrError as error:
            failures.append(describe(error))
    if failures or facts is None or isinstance(identity, Failure):
        raise refusal(failures, "nothing was made")
    return SetupGround(facts, identity, found)


def refusal(failures: Sequence[Failure], state: str) -> SetupRefused:
    """Return one error for all of ``failures``, under the number and exit code of the first."""
    first = failures[0]
    if len(failures) == 1:
        message, detail = first.message, f"{first.why}; {state}"
        hint = first.next if REPEAT in first.next else f"{first.next}; {REPEAT}"
    else:
        message = f"{len(failures)} things are in the way of the set-up"
        told = [f"{one.message}: {one.why} (next: {one.next})" for one in failures]
        detail = "\n".join([*told, state])
        hint = f"put them right, {REPEAT}"
    return SetupRefused(message, detail=detail, hint=hint, number=first.number, exit_code=first.exit_code)


def told_in_setup(error: BaseException, hint: str) -> Failure:
    """Return how an error is told where there is no configuration yet that ``pitr doctor`` could check."""
    failure = describe(error)
    return replace(failure, next=hint) if failure.next == rule_for(error).next else failure


def _server(request: SetupRequest, failures: list[Failure]) -> ServerFacts | None:
    """Ask who the server is and whether the role may do all that will be needed."""
    try:
        with Server.connect(request.dsn) as server:
            _probe, findings = probe_server(
                request.dsn,
                request.slot,
                now=lambda: datetime.now(UTC),
                reads_files=request.reads_files,
                archiver=ArchiverWish(archive_command(request.gate_dir), not request.streams),
            )
            failed = [
                finding
                for finding in findings
                if finding.severity is Severity.FAIL and not finding.id.startswith(_LATER)
            ]
            for finding in failed:
                what = f"slot {request.slot!r}: " if finding.id == "server.slot" else ""
                hint = (
                    (finding.hint or "").replace("[cluster] slot", "--slot").replace("[cluster] dsn", "--pg")
                )
                failures.append(
                    describe(ServerRefused(what + finding.message, detail=f"check {finding.id}", hint=hint))
                )
            return None if failed else server.facts()
    except PitrError as error:
        failures.append(told_in_setup(error, "check --pg, pg_hba.conf and that the server runs"))
        return None


def _place(path: Path) -> Iterator[Failure]:
    """Tell what keeps ``path`` from being made, if anything."""
    path = path.absolute()
    # What cannot be looked at counts as there, so that it is told and not passed over.
    existing = next((parent for parent in path.parents if _may_exist(parent)), Path("/"))
    if not existing.is_dir():
        reason = "it is not a directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"no permission in {existing} for the user who runs this"
    elif os.statvfs(existing).f_flag & os.ST_RDONLY:
        reason = f"{existing} is on a read-only filesystem"
    else:
        return
    rule = rule_for(OSError())
    hint = "choose another place with --dir or --identity-out, or mend this one"
    yield Failure(rule.number, ExitCode.FAILURE, f"{path} cannot be made", reason, hint)


def _may_exist(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True


def _signing_key(path: Path) -> Iterator[Failure]:
    try:
        if path.exists():
            read_signing_key(path)
    except (PitrError, OSError) as error:
        yield told_in_setup(error, f"move {path} away, and another one is made")


def _identity(request: SetupRequest, failures: list[Failure]) -> KnownIdentity | Failure | None:
    """Read the identity that is given, or that a run before this one left; None if there is none."""
    given, left = request.identity_in, request.identity_out
    try:
        path = given or (left if left.exists() else None)
        if path is None:
            return None
        file = read_identity(path)
        return KnownIdentity(path, file, given is not None, left.exists() and path.samefile(left))
    except (PitrError, OSError) as error:
        hint = "give the right file with --identity"
        if given is None:
            hint = f"{left} is never written over: move it away, or name another file with --identity-out"
        failure = told_in_setup(error, hint)
        failures.append(failure)
        return failure


def _region(setting: RegionSettings, creates: bool, failures: list[Failure]) -> RegionLook | None:
    """Look into one region; None if that cannot be done, and then ``failures`` has the reason."""
    try:
        return _look(setting, creates)
    except (PitrError, StoreError) as error:
        hint = "check its URL, its credentials and that it answers"
        if isinstance(error, _NoRegion):
            hint = "mount it, or let it be made with --create-directories"
        told = told_in_setup(error, hint)
        failures.append(replace(told, message=f"region {setting.name}: {told.message}"))
        return None


def _look(setting: RegionSettings, creates: bool) -> RegionLook:
    store = open_regions([setting])[0].store
    location = parse_region_url(setting.url)
    if isinstance(location, DirectoryLocation) and not DirectoryStore.is_region(location.path):
        if creates:
            return RegionLook(setting.name, is_missing=True)
        raise _NoRegion(f"{location.path} is not mounted, or was never made a region")
    record = find_repository_record(store)
    first = next(iter(store.list_objects("")), None)
    epoch = next(iter(store.list_objects("epochs/")), None)
    return RegionLook(setting.name, record, has_epochs=epoch is not None, has_objects=first is not None)
