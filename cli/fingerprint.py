"""``pitr fingerprint``: what the source's tables come to at one LSN, for verifications to compare with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from cli.context import common_options, current


@click.command()
@click.option("--standby", required=True, metavar="DSN", help="A standby; its replay is paused meanwhile.")
@click.option(
    "--key", type=click.Path(path_type=Path), help="The verifier's key (default: [verify] key_file)."
)
@click.option(
    "--timeout", "timeout_s", type=click.IntRange(1, 86_400), default=3600, show_default=True,
    help="Seconds that one table may take.",
)  # fmt: skip
@common_options
def fingerprint(standby: str, key: Path | None, timeout_s: int) -> None:
    """Take the digests of all tables on a standby, at an exact LSN.

    Replay is paused, every table is read, and replay goes on, also after an error. The result is signed with
    the verifier's key and put into the regions; a verification of a moment before it goes on to that LSN
    and compares (C11). The role needs to read all tables and to pause replay, as a superuser may.
    """
    from dataclasses import replace

    from cli.verify_log import open_log
    from cli.wiring import host_repository
    from pitr.postgres.paused_replay import paused_replay
    from pitr.postgres.scratch_session import ScratchSession, databases_of
    from verifiers.fingerprint import Fingerprint, put_fingerprint
    from verifiers.table_digests import cluster_digests

    app = current()
    settings = app.settings()
    config = settings.verify_or_default
    if key is not None:
        config = replace(config, key_file=key.absolute())

    def session(database: str) -> ScratchSession:
        return ScratchSession(standby, superuser=None, database=database, timeout_s=float(timeout_s))

    # The key and the regions first: a standby is not held up for what cannot be kept.
    with open_log(settings, config) as opened:
        begun_at = datetime.now(UTC)
        with paused_replay(standby) as at:
            names = databases_of(standby, superuser=None, timeout_s=60.0)
            digests = cluster_digests(names, session)
        known = host_repository(settings, opened.store).archives()
        epochs = [one.epoch for one in known if one.system_identifier == at.system_identifier]
        taken = Fingerprint(
            settings.repository.repository,
            at.system_identifier,
            at.timeline,
            at.lsn,
            begun_at,
            at.server_version,
            digests,
            max(epochs, default=None),
        )
        object_key = put_fingerprint(opened.store, taken, opened.log.signer)
    rows = sum(one.rows for one in digests.tables)
    app.output.line(
        f"{len(digests.tables)} tables with {rows} rows in {len(names)} databases, at {at.lsn}: {object_key}"
    )
    app.output.finish(
        {
            "lsn": str(at.lsn),
            "timeline": str(at.timeline),
            "system_identifier": str(at.system_identifier),
            "tables": len(digests.tables),
            "rows": rows,
            "databases": names,
            "key": object_key,
        }
    )
