"""``pitr backups``: the base backups that a repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.consolidate import consolidate_backup
from cli.context import common_options, current
from cli.output import format_bytes
from cli.reading import Source, choose_archive, open_source, source_of, source_options

if TYPE_CHECKING:
    from cli.context import App
    from pitr.catalogue.backup_record import BackupManifest, PageFinding


@click.group()
def backups() -> None:
    """List and show base backups."""


@backups.command("list")
@source_options
@common_options
def list_backups(
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """List the base backups whose manifests hold, the oldest first."""
    app = current()
    source = source_of(source_urls, source_identity, source_region, source_archive)
    found = _manifests(app, source)
    app.output.table(
        ["backup", "type", "complete", "size", "stored", "start", "stop", "label"],
        [
            [
                one.backup,
                one.type if one.stands_for is None else "full of a chain",
                f"{one.stopped_at:%Y-%m-%d %H:%M:%S}Z",
                format_bytes(one.size_bytes),
                format_bytes(one.stored_bytes),
                str(one.start_lsn),
                str(one.stop_lsn),
                one.label,
            ]
            for one in found
        ],
        empty="there is no backup yet; next: pitr backup",
    )
    app.output.finish({"backups": [backup_fields(one) for one in found]})


@backups.command("show")
@click.argument("backup")
@source_options
@common_options
def show_backup(
    backup: str,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Show all that the manifest of BACKUP says; "latest" is the newest one."""
    from cli.errors import UsageRefused

    app = current()
    found = _manifests(app, source_of(source_urls, source_identity, source_region, source_archive))
    chosen = found[-1:] if backup == "latest" else [one for one in found if one.backup == backup]
    if not chosen:
        raise UsageRefused(f"there is no backup {backup}", hint="pitr backups list")
    fields = backup_fields(chosen[0])
    fields["findings"] = _with_history(chosen[0], found)
    fields["signals"] = _signals(chosen[0], found)
    for name, value in fields.items():
        if isinstance(value, list):
            app.output.line(f"{name}:" + ("" if value else " none"))
            for item in value:
                app.output.line("    " + (", ".join(f"{k} {v}" for k, v in item.items())))
        else:
            app.output.line(f"{name}: {value}")
    app.output.finish({"backup": fields})


backups.add_command(consolidate_backup)


def _signals(backup: BackupManifest, others: list[BackupManifest]) -> list[dict[str, object]]:
    """Return what looks like rot or like somebody who encrypts."""
    from pitr.rot_signals import rot_signals

    return [
        {"level": str(signal.level), "subject": signal.subject, "message": signal.message}
        for signal in rot_signals(backup, others)
    ]


def _with_history(backup: BackupManifest, others: list[BackupManifest]) -> list[dict[str, object]]:
    """Return a backup's bad pages, each with the backup in which it was last clean."""
    from pitr.page_history import page_histories

    return [
        {
            **finding_fields(history.finding),
            "last_clean_in": None if history.last_clean is None else history.last_clean.backup,
            "first_bad_in": history.first_bad.backup,
        }
        for history in page_histories(backup, others)
    ]


def _manifests(app: App, source: Source) -> list[BackupManifest]:
    from cli.copy_faults import telling_faults

    with open_source(app, source) as reader, telling_faults(app.output, reader.store, {}):
        archive = choose_archive(reader.repository, source.archive)
        listing = reader.repository.manifests(archive)
    for refused in listing.refused:
        app.output.warn(f"{refused.key} cannot be used: {refused.reason}")
    return [one.manifest for one in listing.backups]


def backup_fields(backup: BackupManifest) -> dict[str, object]:
    """Return a manifest for JSON: all but the lists of objects and the server's two files."""
    from pitr.recovery import instant_text

    return {
        "backup": backup.backup,
        "label": backup.label,
        "type": backup.type,
        "parent": backup.parent,
        "full_because": backup.full_because,
        "stands_for": backup.stands_for,
        "archive": str(backup.archive),
        "timeline": str(backup.timeline),
        "started_at": instant_text(backup.started_at),
        "stopped_at": instant_text(backup.stopped_at),
        "start_lsn": str(backup.start_lsn),
        "stop_lsn": str(backup.stop_lsn),
        "server_version": backup.server_version,
        "page_checksums": "on" if backup.page_checksums else "off",
        "files": backup.files,
        "size_bytes": backup.size_bytes,
        "stored_bytes": backup.stored_bytes,
        "resumed_bytes": backup.resumed_bytes,
        "objects": len(backup.packs) + len(backup.indexes),
        "tablespaces": [
            {"oid": space.oid, "name": space.name, "location": space.location} for space in backup.tablespaces
        ],
        "findings": [finding_fields(finding) for finding in backup.findings],
    }


def finding_fields(finding: PageFinding) -> dict[str, object]:
    """Return a bad page for JSON."""
    return {
        "relation": finding.relation,
        "path": finding.path,
        "fork": finding.fork,
        "block": finding.block,
        "reason": finding.reason,
    }
