"""``pitr init``: makes a repository, its keys and a configuration, or lets a cluster into one that exists."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.config_template import NewRegion
from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.units import parse_pair

if TYPE_CHECKING:
    from cli.setup_request import SetupRequest, SetupResult
    from pitr.pipeline.keys import Recipient

_DEFAULT_DSN = "host=/var/run/postgresql dbname=postgres"


@click.command()
@click.option(
    "--pg", "dsn", metavar="DSN", help="How to reach the server (libpq's text or URI, no password)."
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="NAME=URL",
    help="A region, the nearest first; may be repeated.",
)
@click.option(
    "--credentials",
    multiple=True,
    metavar="NAME=FILE",
    help="AWS credentials file of a region; may be repeated.",
)
@click.option(
    "--quorum", type=click.IntRange(1, 16), help="Regions that must have an object (default: most)."
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where pitr.toml and keys go.",
)
@click.option("--name", default="main", show_default=True, help="The cluster's name.")
@click.option("--slot", default="pitr", show_default=True, help="The replication slot to make.")
@click.option(
    "--wal-source",
    type=click.Choice(["stream", "archive"]),
    default="stream",
    show_default=True,
    help="Whether WAL is streamed, or comes by archive_command alone, without a slot or replication.",
)
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    metavar="TEXT",
    help="Who else can read (public key); may be repeated.",
)
@click.option(
    "--identity", "identity_in", type=click.Path(path_type=Path), help="Join the repository of this identity."
)
@click.option(
    "--identity-out", type=click.Path(path_type=Path), help="Where the new identity goes (default: in --dir)."
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    help="With --identity: the recovery certificate of the restored server (default: beside its data).",
)
@click.option("--create-directories", is_flag=True, help="Make the directories of file:// regions.")
@click.option(
    "--metrics", default="127.0.0.1:9187", show_default=True, help="Where the daemon shows metrics."
)
@click.option("--non-interactive", is_flag=True, help="Ask nothing.")
@common_options
def init(
    dsn: str | None,
    regions: tuple[str, ...],
    credentials: tuple[str, ...],
    quorum: int | None,
    directory: Path,
    name: str,
    slot: str,
    wal_source: str,
    recipients: tuple[str, ...],
    identity_in: Path | None,
    identity_out: Path | None,
    certificate: Path | None,
    create_directories: bool,
    metrics: str,
    non_interactive: bool,
) -> None:
    """Make a repository, its keys and a configuration.

    With --identity it joins a repository that exists: the cluster gets the next writer epoch, as a
    restored one must. On a host that has a configuration, --identity alone is enough: it is kept, and
    where the server was restored or set back a new epoch is begun, with a new key. Server, places, keys
    and regions are checked before anything is made, and nothing is ever written over. After a failure or a
    kill the same command line goes on where it was; the recovery sheet is shown until all is made, and
    then not again.
    """
    from cli.setup_request import SetupRequest

    app = current()
    asks = not non_interactive and app.output.is_interactive() and not app.output.is_json
    if identity_in is not None and dsn is None and not regions:
        kept = request_of(app, directory, identity_in, certificate)
        if kept is not None:
            tell(app, carry_out(app, kept))
            return
    if dsn is None:
        dsn = click.prompt("PostgreSQL", default=_DEFAULT_DSN, err=True) if asks else _missing("--pg DSN")
    if not regions:
        regions = _ask_regions() if asks else (_missing("--region NAME=URL, once for each region"),)
    new_regions = _parse_regions(regions, credentials)
    request = SetupRequest(
        cluster=name,
        dsn=dsn,
        slot=slot,
        regions=new_regions,
        quorum=quorum or len(new_regions) // 2 + 1,
        directory=directory,
        identity_in=identity_in,
        identity_out=identity_out or directory / "identity.toml",
        recipients=_parse_recipients(recipients),
        creates_directories=create_directories,
        timezone=app.zone,
        metrics_listen=metrics,
        wal_source=wal_source,
        certificate=certificate,
    )
    _check_before(request)
    tell(app, carry_out(app, request))


def _parse_recipients(texts: tuple[str, ...]) -> tuple[Recipient, ...]:
    from pitr.errors import MalformedValue
    from pitr.pipeline.keys import Recipient

    try:
        return tuple(Recipient.parse(text) for text in texts)
    except MalformedValue as error:
        raise UsageRefused(f"--recipient: {error.message}") from error


def request_of(
    app: App, directory: Path, identity: Path, certificate: Path | None = None
) -> SetupRequest | None:
    """Return the request that this host's configuration stands for; None if it has none."""
    from cli.config import find_config_or_none, load_settings
    from cli.setup_request import SetupRequest
    from cli.wiring import server_address

    path = app.config_path
    if path is None:
        own = directory / "pitr.toml"
        path = own if own.exists() or directory != Path() else find_config_or_none(None)
    if path is None or not path.exists():
        return None
    settings = load_settings(path)
    return SetupRequest(
        cluster=settings.cluster.name,
        dsn=server_address(settings.cluster).find(),
        slot=settings.cluster.slot,
        regions=tuple(NewRegion(one.name, one.url, one.credentials_file) for one in settings.regions),
        quorum=settings.repository.quorum,
        directory=path.parent,
        identity_in=identity,
        identity_out=path.parent / "identity.toml",
        recipients=(),
        creates_directories=False,
        kept=settings,
        wal_source=settings.wal.source,
        certificate=certificate,
    )


def carry_out(app: App, request: SetupRequest) -> SetupResult:
    """Make what was asked for; the recovery sheet is shown on the way."""
    from cli.setup import set_up

    def hand_over(result: SetupResult) -> None:
        if result.is_new_repository:
            for line in recovery_sheet(request, result):
                app.output.line(line)
            # The configuration comes next, and where it is the sheet is not shown again.
            app.output.flush()
        elif request.identity_in is None:
            app.output.line(
                f"repository {result.identity.repository} is there already; its recovery sheet was shown when"
                f" it was made, and the identity is in {result.identity_path}"
            )

    return set_up(
        request,
        now=lambda: datetime.now(UTC),
        random=os.urandom,
        say=app.output.note,
        hand_over=hand_over,
    )


def _missing(what: str) -> str:
    raise UsageRefused(f"{what} is missing", hint="pitr init --help")


def _ask_regions() -> tuple[str, ...]:
    regions: list[str] = []
    while len(regions) < 16:
        prompt = f"Region {len(regions) + 1} as NAME=URL" + (" (empty: no more)" if regions else "")
        answer = click.prompt(prompt, default="", show_default=False, err=True).strip()
        if answer:
            regions.append(answer)
        elif regions:
            break
    return tuple(regions)


def _parse_regions(regions: tuple[str, ...], credentials: tuple[str, ...]) -> tuple[NewRegion, ...]:
    from storage.url import MalformedURL, parse_region_url

    files = dict(parse_pair(text, "--credentials NAME=FILE") for text in credentials)
    parsed = []
    for text in regions:
        name, url = parse_pair(text, "--region NAME=URL")
        try:
            # A directory may be given as a path; the configuration always has the URL.
            location = parse_region_url(Path(url).absolute().as_uri() if "://" not in url else url)
        except MalformedURL as error:
            raise UsageRefused(
                f"region {name}: {error}", hint="docs/config.md shows the forms of URLs"
            ) from error
        file = files.pop(name, None)
        parsed.append(NewRegion(name, str(location), Path(file).absolute() if file is not None else None))
    if files:
        raise UsageRefused(f"--credentials names a region that is not given: {', '.join(files)}")
    names = [region.name for region in parsed]
    if len(set(names)) != len(names) or len({region.url for region in parsed}) != len(names):
        raise UsageRefused("two regions have one name or one URL")
    return tuple(parsed)


def _check_before(request: SetupRequest) -> None:
    """Refuse before anything is made what the configuration's schema would refuse afterwards."""
    from cli.setup import mistakes_of

    mistakes = mistakes_of(request, os.urandom)
    if mistakes:
        raise UsageRefused(
            "the set-up would not be a good one",
            detail="\n".join(f"{mistake.name}: {mistake.text}" for mistake in mistakes),
            hint="pitr init --help",
        )


def tell(app: App, result: SetupResult) -> None:
    """Show what there is now, and what the doctor says of it."""
    from cli.config import load_settings
    from cli.doctor import examine
    from cli.findings import finding_fields, show_findings
    from verifiers.base import Severity

    output = app.output
    settings = load_settings(result.config_path)
    findings = list(examine(settings, None))
    for finding in findings:
        if finding.severity is Severity.FAIL:
            output.warn(f"{finding.id}: {finding.message}; next: {finding.hint}")
    show_findings(output, [finding for finding in findings if finding.severity is not Severity.OK])
    if not result.is_config_kept:
        output.line(f"wrote {result.config_path}")
    elif result.is_new_epoch:
        output.line(f"kept {result.config_path}; the archive is {result.archive} from now on")
    else:
        output.line(f"nothing to do: the server goes on from archive {result.archive}")
    if settings.wal.source == "archive":
        output.line(f"next: pitr -c {result.config_path} wal gate, which says how to set archive_command")
    output.line(f"next: pitr -c {result.config_path} daemon")
    output.finish(
        {
            "config": str(result.config_path),
            "identity": str(result.identity_path),
            "repository": result.identity.repository,
            "root": str(result.identity.root),
            "archive": str(result.archive),
            "is_new_repository": result.is_new_repository,
            "is_new_epoch": result.is_new_epoch,
            "parent": None
            if result.parent is None
            else {
                "epoch": result.parent.epoch,
                "timeline": str(result.parent.timeline),
                "lsn": str(result.parent.lsn),
            },
            "findings": [finding_fields(finding) for finding in findings],
        }
    )


def recovery_sheet(request: SetupRequest, result: SetupResult) -> list[str]:
    """Return the sheet to print and keep: all that a bare machine needs beside the regions."""
    bar = "=" * 78
    lines = [
        bar,
        "RECOVERY SHEET — without this nobody can read the backups, and with it anybody can",
        "",
        f"cluster     {request.cluster}",
        f"made        {datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z",
        f"repository  {result.identity.repository}",
        f"root        {result.identity.root}",
    ]
    lines += [f"region      {region.name}  {region.url}" for region in request.regions]
    lines += ["", "identity"]
    groups = result.identity.identity.text().split("-")
    head, digits = "-".join(groups[:3]) + "-", groups[3:]
    lines.append(f"    {head}")
    lines += [f"    {'-'.join(digits[at : at + 6])}" for at in range(0, len(digits), 6)]
    lines += [
        "",
        f"The identity file is {result.identity_path}.  Move it off this host now, to two safe",
        "places, and print this sheet.  A restore on any machine:",
        "",
        *(f"    {line}" for line in _restore_lines(request)),
        bar,
    ]
    return lines


def _restore_lines(request: SetupRequest) -> list[str]:
    lines = ["pitr restore --identity identity.toml \\"]
    lines += [f"  --from '{region.url}' \\" for region in request.regions]
    return [*lines, "  --to latest --into /new/data/directory"]
