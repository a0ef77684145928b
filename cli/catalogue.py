"""``pitr catalogue``: the cache made anew from the regions, or compared with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.findings import finding_fields, show_findings
from cli.reading import Source, open_source

if TYPE_CHECKING:
    from pitr.repository import Repository
    from verifiers.base import Finding

_ROWS_SHOWN_MAX = 20


@click.group()
def catalogue() -> None:
    """Rebuild or check the catalogue."""


@catalogue.command("rebuild")
@click.option("--region", metavar="NAME", help="From this region alone: up to its last signed head.")
@click.option("--out", type=click.Path(path_type=Path), help="Another file than the daemon's.")
@common_options
def rebuild_catalogue(region: str | None, out: Path | None) -> None:
    """Make the catalogue anew from the regions.

    The daemon must not run, unless --out names another file. The old file is replaced only once the new
    one is complete.
    """
    from cli.lock import RunLock

    app = current()
    settings = app.settings()
    path = out or settings.daemon.catalogue_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if out is not None:
        _rebuild(app, region, path)
        return
    with RunLock(settings.daemon.lock_path):
        _rebuild(app, region, path)


def _rebuild(app: App, region: str | None, path: Path) -> None:
    from cli.catalogue_keeper import remove_catalogue
    from cli.planning import read_regions
    from pitr.catalogue.sqlite import Catalogue

    staged = path.with_name(f"{path.name}.new")
    remove_catalogue(staged)
    with open_source(app, Source(region=region)) as reader:
        made = Catalogue(staged)
        try:
            result = read_regions(reader, made, app.output)
            rows = len(made.dump().splitlines())
        finally:
            made.close()
    remove_catalogue(path)
    staged.replace(path)
    remove_catalogue(staged)
    app.output.line(
        f"{path}: {rows} rows of {len(result.archives)} archives, from {result.wal_objects} WAL objects"
    )
    app.output.finish(
        {
            "path": str(path),
            "rows": rows,
            "archives": [str(archive) for archive in result.archives],
            "wal_objects": result.wal_objects,
            "refused": [{"key": one.key, "reason": one.reason} for one in result.refused],
            "unseen": list(result.unseen),
        }
    )


@catalogue.command("check")
@click.option("--region", metavar="NAME", help="Compare with this region alone.")
@click.option("--no-chain", is_flag=True, help="Leave out the signed chain of heads and pieces.")
@click.option("--read-data", is_flag=True, help="Read every object of each region in full; needs no key.")
@common_options
def check_catalogue(region: str | None, no_chain: bool, read_data: bool) -> None:
    """Compare the catalogue with the regions, and the regions with each other.

    Each region is asked by itself: which objects it lacks, whose size is wrong, whether its own copies of
    the small signed records verify, and whether all tell the same story of the archive's end. With
    --read-data every object is read and its SHA-256 compared. Exit code 7 if something is wrong, 9 if
    a region could not be asked. A running daemon may record meanwhile: what seems to be missing is looked
    at twice before it is told.
    """
    from cli.copies import examine_regions, raise_if_wrong, region_fields, show_regions
    from verifiers.chain import check_chain

    app = current()
    findings: list[Finding] = []
    with open_source(app, Source(region=region)) as reader:
        findings += _compare(app, reader.repository, is_partial=region is not None)
        if not no_chain:
            for archive in reader.repository.archives():
                findings += check_chain(reader.repository, archive)
        report, found = examine_regions(reader, app.output, read_data=read_data)
        findings += found
    show_regions(app.output, report)
    show_findings(app.output, findings)
    result: dict[str, object] = {
        "findings": [finding_fields(finding) for finding in findings],
        "regions": [region_fields(one, report.faults) for one in report.regions],
    }
    app.partial_result = result
    raise_if_wrong(findings, report)
    app.output.finish(result)


def _compare(app: App, repository: Repository, *, is_partial: bool) -> list[Finding]:
    from pitr.catalogue.sqlite import Catalogue
    from pitr.catalogue_rebuild import check
    from pitr.errors import PitrError
    from pitr.quorum import Answers
    from verifiers.base import Finding, Severity

    path = app.settings().daemon.catalogue_path
    subject, hint = str(path), "stop the daemon and run: pitr catalogue rebuild"
    try:
        own = Catalogue(path, create=False)
    except PitrError as error:
        return [Finding("catalogue.file", Severity.FAIL, subject, error.message, error.hint)]
    try:
        answers = Answers(1, app.settings().write_quorum) if is_partial else None
        differences = set(check(repository, own, answers=answers))
        if differences:
            # What the daemon was about to record at the first look is there at the second.
            differences &= set(check(repository, own, answers=answers))
    except PitrError as error:
        return [Finding("catalogue.compare", Severity.FAIL, subject, error.message, error.hint)]
    finally:
        own.close()
    if is_partial:
        # One region may lag behind the catalogue; it must not hold what the catalogue does not know.
        differences = {one for one in differences if one.is_in_store}
    shown = sorted(differences, key=lambda one: one.row)[:_ROWS_SHOWN_MAX]
    findings = [
        Finding(
            "catalogue.compare",
            Severity.FAIL,
            subject,
            f"{'lacks' if one.is_in_store else 'has, and the regions have not'}: {one.row[:200]}",
            hint,
        )
        for one in shown
    ]
    if len(differences) > len(shown):
        more = f"{len(differences) - len(shown)} more rows differ"
        findings.append(Finding("catalogue.compare", Severity.FAIL, subject, more, hint))
    return findings or [Finding("catalogue.compare", Severity.OK, subject, "equals what the regions hold")]
