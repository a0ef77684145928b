"""``pitr doctor``: one line per check of server, regions, keys, clock and host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import common_options, current
from cli.errors import ConfigRefused, DoctorFailed, UsageRefused
from cli.findings import finding_fields, show_findings
from cli.settings import ClusterSettings, Settings
from verifiers.base import Finding, Severity, worst

if TYPE_CHECKING:
    from cli.wiring import HostIdentity
    from pitr.pipeline.sign import Verifier


@click.command()
@click.option(
    "--identity",
    "identity_path",
    type=click.Path(path_type=Path),
    help="Also try whether this identity opens what the host seals.",
)
@click.option(
    "--only", multiple=True, metavar="CHECK", help="Show only checks that begin with this; may be repeated."
)
@common_options
def doctor(identity_path: Path | None, only: tuple[str, ...]) -> None:
    """Check server, regions, keys, clock and host.

    Exit code 1 if a check fails, 0 if all is well or only warned of.
    """
    app = current()
    made = list(examine(app.settings(), identity_path))
    for prefix in only:
        if not any(finding.id.startswith(prefix) for finding in made):
            # A probe that looks at nothing would be green for ever.
            raise UsageRefused(
                f"there is no check {prefix!r}", hint="one of: " + ", ".join(sorted({one.id for one in made}))
            )
    findings = [one for one in made if not only or any(one.id.startswith(prefix) for prefix in only)]
    report(app.output.is_json, findings)


def report(is_json: bool, findings: list[Finding]) -> None:
    """Show findings; raise DoctorFailed if one is a failure."""
    app = current()
    show_findings(app.output, findings)
    result: dict[str, object] = {"findings": [finding_fields(finding) for finding in findings]}
    failed = [finding for finding in findings if finding.severity is Severity.FAIL]
    if failed:
        app.partial_result = result
        raise DoctorFailed(
            f"{len(failed)} of {len(findings)} checks failed",
            detail=", ".join(finding.id for finding in failed),
            hint=failed[0].hint,
        )
    warned = sum(finding.severity is Severity.WARN for finding in findings)
    if not is_json:
        app.output.line(f"{len(findings)} checks, none failed" + (f", {warned} warned" if warned else ""))
    app.output.finish({**result, "worst": worst(findings).value})


def examine(settings: Settings, identity_path: Path | None) -> Iterator[Finding]:
    """Yield the findings of every check, the server's first."""
    from cli.doctor_copies import examine_copies
    from cli.doctor_verify import examine_verify
    from cli.wiring import host_identity, preferred_bin_dir
    from pitr.errors import KeyMissing
    from pitr.gate_script import archive_command
    from verifiers.archiver import ArchiverWish
    from verifiers.disk_probes import judge_unseen_disk, probe_wal_disk
    from verifiers.host_probes import (
        probe_credentials,
        probe_identity_absent,
        probe_installation,
        probe_signing_key,
        probe_state_directory,
    )
    from verifiers.probes import VERSION_MIN, probe_server

    streams = settings.wal.source == "stream"
    dsn, leads_standby_cluster, leaderless = _find_server(settings)
    if leaderless is not None:
        yield leaderless
    probe, findings = probe_server(
        dsn,
        settings.cluster.slot,
        now=lambda: datetime.now(UTC),
        reads_files=settings.backup.source == "files",
        archiver=ArchiverWish(archive_command(settings.gate_dir), not streams),
        leads_standby_cluster=leads_standby_cluster,
    )
    yield from findings
    if streams:
        yield from _examine_patroni(settings.cluster)
    if probe is not None and probe.version >= VERSION_MIN:
        yield from _examine_synchronous(settings, dsn)
        if streams and settings.backup.source == "files":
            yield from probe_wal_disk(dsn, settings.cluster.slot, settings.wal.drop)
        elif streams:
            yield from judge_unseen_disk(settings.wal.drop)
    if probe is not None:
        yield probe_installation(probe.major, preferred_bin_dir(settings))
    yield probe_state_directory(settings.daemon.state_dir)
    yield examine_verify(settings.verify)
    yield from examine_copies(settings.daemon)
    yield from _examine_beside(settings, None if probe is None else dsn)
    yield probe_signing_key(settings.keys.signing_key_file)
    for region in settings.regions:
        if region.credentials_file is not None:
            yield probe_credentials(region.name, region.credentials_file)
    yield probe_identity_absent([settings.path.parent, settings.daemon.state_dir])
    try:
        host = host_identity(settings)
    except KeyMissing as error:
        yield Finding("keys.readable", Severity.FAIL, "keys", error.message, error.hint)
        return
    if identity_path is not None:
        yield from _examine_identity(settings, host, identity_path)
    identifier = probe.facts.get("system_identifier") if probe is not None else None
    yield from _examine_regions(settings, host.signer.public, host.root, identifier and int(identifier))


def _examine_beside(settings: Settings, dsn: str | None) -> Iterator[Finding]:
    """Yield what is found of Kafka and Redis, where the configuration names any; ``dsn`` if it answers."""
    if settings.events is not None:
        from cli.doctor_events import examine_events, examine_mark

        if dsn is not None:
            yield examine_mark(dsn)
        yield from examine_events(settings.events, settings.retention.window_s)
    if settings.redis:
        from cli.doctor_redis import examine_redis

        yield from examine_redis(settings.redis)


def _find_server(settings: Settings) -> tuple[str, bool | None, Finding | None]:
    """Return the server to ask, whether it leads a standby cluster, and what is wrong with finding it.

    None where no leader is followed, or where it is not known.
    """
    from cli.wiring import server_address
    from pitr.errors import ServerUnavailable
    from pitr.postgres.leader import LeaderAddress

    try:
        address = server_address(settings.cluster)
        dsn = address.find()
    except (ServerUnavailable, ConfigRefused) as error:
        hint = error.hint or "see the members' state: patronictl list"
        text = error.message if error.detail is None else f"{error.message}: {error.detail}"
        return settings.cluster.dsn, None, Finding("server.leader", Severity.FAIL, "Patroni", text, hint)
    if isinstance(address, LeaderAddress) and address.streaming is not None:
        return dsn, address.streaming.is_standby, None
    return dsn, None, None


def _examine_patroni(cluster: ClusterSettings) -> Iterator[Finding]:
    """Say whether the slot is declared for every member: after a failover a new one begins too late."""
    from cli.wiring import server_address
    from pitr.postgres.leader import LeaderAddress

    try:
        address = server_address(cluster)
    except ConfigRefused:
        return  # told as the leader that cannot be found
    if not isinstance(address, LeaderAddress):
        return
    check, slots = "server.permanent_slot", address.permanent_slots()
    if slots is None:
        yield Finding(check, Severity.WARN, cluster.slot, "no member shows the cluster's configuration", None)
    elif slots.get(cluster.slot) == "physical":
        yield Finding(check, Severity.OK, cluster.slot, "Patroni keeps it on every member")
    else:
        found = "it is of another type" if cluster.slot in slots else "it is not declared"
        yield Finding(
            check,
            Severity.WARN,
            cluster.slot,
            f"{found} in Patroni's configuration, so a new leader need not keep WAL that is not archived yet",
            f"patronictl edit-config --set slots.{cluster.slot}.type=physical",
        )


def _examine_synchronous(settings: Settings, dsn: str) -> Iterator[Finding]:
    from cli.lock import RunLock
    from verifiers.sync_probes import duty_of, probe_synchronous

    duty = duty_of(
        settings.cluster.dsn,
        settings.wal.protection.protect,
        is_co_located=settings.backup.source == "files",
        is_watched=RunLock.holder(settings.daemon.watchdog_lock_path) is not None,
    )
    yield from probe_synchronous(dsn, duty)


def _examine_identity(settings: Settings, host: HostIdentity, path: Path) -> Iterator[Finding]:
    """Try the reader's identity, which only a restore needs."""
    from cli.key_files import read_identity
    from pitr.pipeline.sign import Verifier
    from verifiers.store_probes import probe_envelope

    identity = read_identity(path)
    hint = "move it off this host after this check: only a restore needs it"
    yield Finding(
        "keys.identity_here",
        Severity.WARN,
        str(path),
        "a reader's identity lies on this host",
        hint,
    )
    if identity.root != Verifier.parse(settings.keys.root):
        yield Finding(
            "keys.root",
            Severity.FAIL,
            str(path),
            "it belongs to another repository",
            "give the right one",
        )
    yield probe_envelope(
        host.recipients,
        identity.identity,
        settings.repository.repository,
        now=datetime.now(UTC),
        random=os.urandom,
    )


def _examine_regions(
    settings: Settings, writer: Verifier, root: Verifier, system_identifier: int | None
) -> Iterator[Finding]:
    from cli.doctor_clock import probe_clock
    from cli.regions import open_reading, open_regions
    from cli.wiring import host_repository
    from pitr.errors import PitrError
    from storage.store import StoreError
    from storage.url import asks_lock
    from verifiers.forks import check_forks
    from verifiers.promise_probes import probe_promises
    from verifiers.store_probes import probe_key, probe_places, probe_region, probe_repository

    try:
        regions = open_regions(settings.regions)
    except (PitrError, StoreError) as error:
        hint = error.hint if isinstance(error, PitrError) else "check the regions' urls"
        yield Finding("region.open", Severity.FAIL, "regions", str(error), hint)
        return
    key = probe_key(settings.repository.repository, writer)
    sound = []
    for region, setting in zip(regions, settings.regions, strict=True):
        found = probe_region(region, key)
        yield from found
        if worst(found) is not Severity.FAIL:
            sound.append(region)
            yield from probe_promises(region, key, asks_lock=asks_lock(setting.url))
    yield from probe_places(sound, key, os.urandom)
    for setting in settings.regions:
        yield from probe_clock(setting.name, setting.url, now=lambda: datetime.now(UTC))
    archive = None
    if system_identifier is not None:
        store = open_reading(regions, settings.repository.quorum, answers_min=1)
        try:
            own = [
                one
                for one in host_repository(settings, store).archives()
                if one.system_identifier == system_identifier
            ]
            archive = max(own, key=lambda one: one.epoch, default=None)
        except (PitrError, StoreError) as error:
            yield Finding(
                "repository.epochs", Severity.FAIL, "repository", str(error), "see the regions' findings"
            )
        else:
            if archive is not None:
                yield from check_forks(host_repository(settings, store), archive, regions, heads_max=1)
            else:
                hint = "pitr init --identity FILE lets this cluster in"
                text = f"no archive of system identifier {system_identifier}"
                yield Finding("repository.epochs", Severity.FAIL, "repository", text, hint)
        finally:
            store.close()
    yield from probe_repository(regions, settings.repository.repository, root, archive, writer)
