"""``pitr report oscal``: the reports as OSCAL assessment results."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cli.context import common_options, current
from cli.reading import open_source, source_of


@click.command("oscal")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("wanted", metavar="[REPORT]...", nargs=-1)
@click.option(
    "--verifier", type=click.Path(path_type=Path, dir_okay=False), help="The verifier's public key."
)
@click.option("--region", metavar="NAME", help="Read this configured region alone.")
@common_options
def oscal(file: Path, wanted: tuple[str, ...], verifier: Path | None, region: str | None) -> None:
    """Write reports to FILE as NIST's OSCAL assessment results: all, or those of these numbers or ids.

    Each check is an observation, each NIST SP 800-53 control that a report is evidence for a finding. What
    is signed is the report itself, which each observation names by its digest.
    """
    from cli.errors import UsageRefused
    from cli.made_file import write_made
    from cli.report_log import choose_report, find_verifier
    from verifiers.log_reader import read_log
    from verifiers.oscal import OSCAL_VERSION, assessment_results
    from verifiers.report_series import logged_reports, read_report

    app = current()
    with open_source(app, source_of((), None, region, None)) as reader:
        key = find_verifier(app, reader, verifier)
        logged = logged_reports(read_log(reader.store, reader.repository.repository_id, key).covered)
        names = {choose_report(logged, name).report_id for name in wanted}
        chosen = [one for one in logged if not wanted or one.report_id in names]
        if not chosen:
            raise UsageRefused("there is no report yet", hint="pitr verify makes the first")
        document = assessment_results([read_report(reader.store, key, one) for one in chosen])
    write_made(file, (json.dumps(document, indent=1) + "\n").encode("ascii"))
    app.output.line(f"{file}: {len(chosen)} reports, OSCAL {OSCAL_VERSION}")
    app.output.finish({"file": str(file), "reports": len(chosen), "oscal_version": OSCAL_VERSION})
