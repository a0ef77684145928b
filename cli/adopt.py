"""``pitr adopt``: a person says what it was when a server left the archive: a failover, or a restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused

if TYPE_CHECKING:
    from cli.server_past import ServerPast
    from cli.settings import Settings
    from pitr.layout import ArchiveId
    from pitr.repository import Repository
    from pitr.wal.follow import ArchiveFork


@click.command()
@click.option(
    "--as",
    "decision",
    type=click.Choice(["failover", "restore"]),
    required=True,
    help="What it was: a failover that lost WAL, or a restore or copy that goes on as a new epoch.",
)
@click.option(
    "--identity",
    type=click.Path(path_type=Path),
    help="With --as restore: the identity of the repository, which signs the new epoch.",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    help="With --as restore: the server's recovery certificate (default: beside its data).",
)
@click.option("--confirm", is_flag=True, help="Do it without asking; without a terminal it is needed.")
@common_options
def adopt(decision: str, identity: Path | None, certificate: Path | None, confirm: bool) -> None:
    """Say what it was where the server left the archive.

    The daemon stops where the server's history left what is archived below its end, and nobody but a person
    can say why. A failover to a standby that had less: the same archive goes on with the new timeline, and
    what only the old primary had stays restorable as the end of the old one. A restore, a copy or a server
    that was set back: a new writer epoch begins, with a new key. Shows what it would do and asks; refuses
    where there is nothing to decide. The daemon must not run; at its next start it acts on the decision, and
    signs it: pitr log.
    """
    from cli.server_past import check_stopped, read_server
    from cli.wiring import server_address

    app = current()
    settings = app.settings()
    if (identity is not None) != (decision == "restore"):
        raise UsageRefused(
            "--as restore needs --identity FILE, and --as failover has no use for it",
            hint="pitr adopt --help",
        )
    check_stopped(settings.daemon.state_dir, "")
    server = read_server(server_address(settings.cluster).find(), streams=settings.wal.source == "stream")
    if identity is None:
        _adopt_failover(app, settings, server, is_confirmed=confirm)
    else:
        _adopt_restore(app, settings, server, identity, certificate, is_confirmed=confirm)


def _adopt_failover(app: App, settings: Settings, server: ServerPast, *, is_confirmed: bool) -> None:
    """Keep the decision that names the fork which there is now."""
    from cli.adopt_event import adopted_failover, decided_by, note_decision
    from cli.adoption import Decision, keep_decision
    from cli.wiring import host_identity, own_archive

    with _reading(settings) as repository:
        _check_known(server, repository)
        archive = own_archive(repository, host_identity(settings).signer, server.identity.system_identifier)
        fork = _fork(server, repository, archive, settings.daemon.state_dir)
    output = app.output
    output.line(f"archive   {archive} ends at {fork.end} of timeline {fork.ended_on}")
    output.line(f"server    timeline {fork.following}, which left timeline {fork.timeline} at {fork.left_at}")
    output.line(f"          {settings.cluster.name}: {server.identity.flushed} is written")
    output.line(f"as a failover, the archive goes on with timeline {fork.following} from {fork.left_at} on;")
    output.line(
        f"WAL up to {fork.end} of timeline {fork.ended_on} stays, for --timeline {fork.ended_on}; its commits"
        " are not in the new primary"
    )
    _confirm(app, "Was this a failover?", is_confirmed=is_confirmed)
    decided = Decision(archive, fork, datetime.now(UTC))
    note_decision(settings.daemon, adopted_failover(decided, decided_by()))
    keep_decision(settings.daemon.state_dir, decided)
    output.line("decided: it was a failover")
    output.line(f"next: pitr -c {settings.path} daemon")
    output.finish(
        {
            "archive": str(archive),
            "as": "failover",
            "timeline": str(fork.timeline),
            "left_at": str(fork.left_at),
            "orphaned": {"timeline": str(fork.ended_on), "end": str(fork.end)},
            "following": str(fork.following),
        }
    )


def _fork(server: ServerPast, repository: Repository, archive: ArchiveId, state_dir: Path) -> ArchiveFork:
    """Return the fork that can be a failover's.  Raises UsageRefused, ArchiveDiverged."""
    from cli.server_past import received_end
    from pitr.wal.follow import find_fork
    from pitr.wal.timeline import TimelineHistory, TimelineId

    received = received_end(repository, archive, state_dir)
    if received is None:
        raise UsageRefused("there is nothing to decide: nothing is archived yet", hint="pitr daemon")
    own = TimelineHistory(received.timeline)
    if received.timeline != TimelineId(1):
        own = repository.get_history(archive, received.timeline).history()
    fork = find_fork(received, own, server.history)
    if fork is not None:
        return fork
    if server.is_standby:
        # One that follows a new primary already has its timeline, and was answered above.
        raise UsageRefused(
            "the server is a standby, and it has not left the archive's timeline",
            hint="wait until it is promoted or follows the new primary, or name that in the configuration",
        )
    if server.identity.timeline == received.timeline and server.identity.flushed < received.end:
        raise UsageRefused(
            f"this was no failover: timeline {received.timeline} goes on, and the server has less of it",
            detail=f"it ends at {server.identity.flushed}, the archive at {received.end}",
            hint="it was set back or copied: pitr adopt --as restore --identity FILE",
        )
    raise UsageRefused(
        "there is nothing to decide: the server goes on from what is archived",
        detail=f"the archive ends at {received.end} of timeline {received.timeline}, which the server has",
        hint="pitr daemon; if it said that WAL differs: pitr adopt --as restore --identity FILE",
    )


def _adopt_restore(
    app: App,
    settings: Settings,
    server: ServerPast,
    path: Path,
    certificate: Path | None,
    *,
    is_confirmed: bool,
) -> None:
    """Begin a new writer epoch, as ``pitr init --identity`` does on a host that has a configuration."""
    from cli.adopt_event import adopted_restore, decided_by, note_decision
    from cli.init import carry_out, request_of, tell
    from cli.key_files import read_identity
    from cli.setup_epoch import epoch_of, why_new_epoch
    from cli.wiring import host_identity

    identity = read_identity(path)
    signer = host_identity(settings).signer.public
    with _reading(settings) as repository:
        reason = why_new_epoch(server, repository, identity, signer, settings.daemon.state_dir)
        written = epoch_of(repository, server.identity.system_identifier, signer)
    if reason is None:
        raise UsageRefused(
            "there is nothing to decide: the server goes on from what this host archived",
            hint=f"pitr -c {settings.path} daemon",
        )
    app.output.line(f"server    timeline {server.identity.timeline}, {server.identity.flushed} is written")
    app.output.line(f"reason    {reason}")
    app.output.line(
        "as a restore, a new writer epoch with a new key begins where the server left the archive; all that"
        " is archived stays, and is restored with --archive"
    )
    _confirm(
        app,
        "Was this server restored, copied or set back?",
        is_confirmed=is_confirmed,
    )
    app.config_path = settings.path
    request = request_of(app, settings.path.parent, path, certificate)
    assert request is not None, "the configuration was read"
    # First: a decision that took effect and was not noted could not be found again.
    note_decision(settings.daemon, adopted_restore(server, written, reason, decided_by(), datetime.now(UTC)))
    tell(app, carry_out(app, request))


def _confirm(app: App, question: str, *, is_confirmed: bool) -> None:
    if is_confirmed or app.is_yes:
        return
    if not app.output.is_interactive() or app.output.is_json:
        raise UsageRefused("the decision must be confirmed; nothing was done", hint="add --confirm")
    click.confirm(question, abort=True, err=True)


def _check_known(server: ServerPast, repository: Repository) -> None:
    identifier = server.identity.system_identifier
    known = sorted({one.system_identifier for one in repository.archives()})
    if identifier not in known:
        raise UsageRefused(
            f"this is another cluster than the archive's: its system identifier is {identifier}",
            detail=f"archived are {', '.join(map(str, known)) or 'none'}",
            hint="check the connection string; pitr init --identity FILE lets another cluster in",
        )


@contextmanager
def _reading(settings: Settings) -> Iterator[Repository]:
    from cli.wiring import open_reader

    with open_reader(settings) as reader:
        yield reader.repository
