"""``pitr report``: what verified restores are on record, shown, exported for an auditor, and certified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.reading import Command, Source, open_source
from cli.report_oscal import oscal
from cli.report_period import period, period_options, report_period

if TYPE_CHECKING:
    from cli.wiring import Reader
    from pitr.pipeline.sign import Verifier
    from verifiers.log_entry import LogEntry
    from verifiers.report_series import LoggedReport
    from verifiers.statement import Predicate

_FILE = click.Path(path_type=Path, dir_okay=False)


def _reading_options(command: Command) -> Command:
    options = [
        click.option(
            "--from",
            "urls",
            multiple=True,
            metavar="URL",
            help="A region; needs no configuration; may be repeated.",
        ),
        click.option("--identity", type=_FILE, help="The reader's identity file, with --from."),
        click.option("--region", metavar="NAME", help="Read this configured region alone."),
        click.option(
            "--verifier",
            type=_FILE,
            help="The verifier's public key (default: verifier.pub.pem beside the configuration).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_PAPER = click.option(
    "--paper",
    type=click.Choice(["a4", "us-letter"]),
    default="a4",
    show_default=True,
    help="What the PDF is printed on.",
)


@contextmanager
def _opened(
    app: App, urls: tuple[str, ...], identity: Path | None, region: str | None, verifier: Path | None
) -> Iterator[tuple[Reader, Verifier]]:
    from cli.reading import source_of
    from cli.report_log import find_verifier

    source: Source = source_of(urls, identity, region, None)
    with open_source(app, source) as reader:
        yield reader, find_verifier(app, reader, verifier)


@click.group(invoke_without_command=True, no_args_is_help=True)
@period_options
@common_options
@click.pass_context
def report(
    ctx: click.Context,
    begins: str | None,
    ends: str | None,
    system: str | None,
    verifier_key: Path | None,
) -> None:
    """Reports of verified restores: list, show, export, certify.

    With --from and --to, and no command: sign the report of that period, as pitr report period does.
    """
    named = [begins, ends, system, verifier_key]
    if ctx.invoked_subcommand is None:
        report_period(current(), begins, ends, system, verifier_key)
    elif any(one is not None for one in named):
        raise UsageRefused(
            f"the options of a period stand after its command, or before none: {ctx.invoked_subcommand}",
            hint="pitr report --from TIME --to TIME",
        )


report.add_command(period)
report.add_command(oscal)


@report.command("list")
@_reading_options
@common_options
def list_reports(
    urls: tuple[str, ...], identity: Path | None, region: str | None, verifier: Path | None
) -> None:
    """List the verifications: those with a report, and those that were missed or came to none.

    From the verifier's log, each entry of which is verified. Exit code 8 if the log was changed.
    """
    from verifiers.log_reader import read_log
    from verifiers.report_series import logged_reports

    app = current()
    with _opened(app, urls, identity, region, verifier) as (reader, key):
        state = read_log(reader.store, reader.repository.repository_id, key)
    reports = {one.report_id: one for one in logged_reports(state.covered)}
    rows = [row for entry in state.covered if (row := _row(entry, reports)) is not None]
    app.output.table(
        ["number", "at", "outcome", "certified by", "report"],
        [
            [str(row[name] or "-") for name in ("number", "at", "outcome", "certified_by", "report_id")]
            for row in rows
        ],
        empty="no restore was verified yet",
    )
    app.output.finish(
        {"key_id": key.key_id, "log_entries": len(state.covered), "reports": rows},
    )


def _row(entry: LogEntry, reports: dict[str, LoggedReport]) -> dict[str, object] | None:
    """Return what the list says of an entry that ends a run; None for any other."""
    from pitr.pipeline.sign import encode_time

    if not entry.kind.endswith(("-ended", "-missed")):
        return None
    made = reports.get(entry.text("report_id") or "")
    return {
        "number": None if made is None else made.number,
        "at": encode_time(entry.at),
        "kind": entry.kind,
        "outcome": entry.text("outcome") or "MISSED",
        "reason": entry.text("reason"),
        "report_id": None if made is None else made.report_id,
        "system_identifier": entry.text("system_identifier"),
        "certified_by": None if made is None else ", ".join(one.name for one in made.certified) or None,
    }


@report.command("show")
@click.argument("wanted", metavar="REPORT", default="newest")
@click.option("--pdf", type=_FILE, help="Write it as PDF/A to this file, which is replaced.")
@_PAPER
@_reading_options
@common_options
def show_report(
    wanted: str,
    pdf: Path | None,
    paper: Literal["a4", "us-letter"],
    urls: tuple[str, ...],
    identity: Path | None,
    region: str | None,
    verifier: Path | None,
) -> None:
    """Show one report: its number or id, or the newest. With --json the whole signed statement.

    With --pdf also as a file for people, which needs the extra pdf: pip install 'pitr[pdf]'.
    """
    from cli.report_log import choose_report
    from verifiers.log_reader import read_log
    from verifiers.report_series import logged_reports, read_certifications, read_report

    app = current()
    with _opened(app, urls, identity, region, verifier) as (reader, key):
        state = read_log(reader.store, reader.repository.repository_id, key)
        chosen = choose_report(logged_reports(state.covered), wanted)
        statement = read_report(reader.store, key, chosen)
        certifications = read_certifications(reader.store, key, chosen)
    if pdf is not None:
        from cli.made_file import write_made
        from verifiers.report_pdf import render_pdf

        write_made(pdf, render_pdf(statement, certifications, paper))
    _tell(app, statement.predicate, [one.predicate for one in certifications])
    app.output.finish(
        {
            "key_id": key.key_id,
            "report_sha256": statement.payload_sha256,
            "predicate": statement.predicate,
            "certifications": [one.predicate for one in certifications],
            "pdf": None if pdf is None else str(pdf),
        }
    )


def _tell(app: App, said: Predicate, certifications: list[Predicate]) -> None:
    from cli.output import format_seconds

    result, identity, scope = said["result"], said["identity"], said["scope"]
    app.output.line(f"report {identity['series_seq']} ({identity['report_id']}): {result['overall']}")
    whose = f"{scope['system_name']} of {scope['org']}" if scope["org"] else scope["system_name"]
    app.output.line(f"{whose}, system identifier {scope['system_identifier']}")
    trigger = said["trigger"]
    kind = identity["report_type"].replace("_", " ")
    app.output.line(f"started {trigger['started_at']}, {kind}, {trigger['reason']}")
    measured = [
        ("recovery time", said["timings"]["recovery_time_ms"], said["policy"]["rto_ms"], result["rto_met"]),
        ("data loss", said["data_loss"]["data_loss_ms"], said["policy"]["rpo_ms"], result["rpo_met"]),
    ]
    for name, value, objective, met in measured:
        shown = "not measured" if value is None else format_seconds(value / 1000)
        aim = "no objective" if objective is None else f"objective {format_seconds(objective / 1000)}"
        verdict = {True: ", met", False: ", MISSED", None: ""}[met]
        app.output.line(f"{name}: {shown} ({aim}{verdict})")
    app.output.table(
        ["check", "result", "required", "what", "why"],
        [
            [one["id"], one["result"], "yes" if one["required"] else "no", one["title"], one["reason"] or ""]
            for one in said["checks"]
        ],
        empty="no check ran",
    )
    for limit in result["limits"]:
        app.output.line(f"limit: {limit}")
    for one in certifications:
        by = one["certified_by"]
        app.output.line(
            f"certified by {by['name']}, {by['role']}, at {one['certified_at']}: {one['statement']}"
        )


@report.command("export")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pdf", is_flag=True, help="Also write each as PDF/A, into FOLDER/pdf.")
@_PAPER
@_reading_options
@common_options
def export_folder(
    folder: Path,
    pdf: bool,
    paper: Literal["a4", "us-letter"],
    urls: tuple[str, ...],
    identity: Path | None,
    region: str | None,
    verifier: Path | None,
) -> None:
    """Write all reports, the whole log and its checkpoints to FOLDER, for an auditor.

    May be repeated: what is new is added. pitr-audit checks the folder with the public key alone; PDFs are
    copies for people, and need the extra pdf: pip install 'pitr[pdf]'.
    """
    from verifiers.report_export import export_pdfs, export_reports

    app = current()
    with _opened(app, urls, identity, region, verifier) as (reader, key):
        repository_id = reader.repository.repository_id
        done = export_reports(reader.store, repository_id, key, folder)
        pdfs = export_pdfs(reader.store, repository_id, key, folder / "pdf", paper) if pdf else 0
    if done.uncovered:
        app.output.warn(
            f"{done.uncovered} newest entries of the log are under no checkpoint yet, and were left out"
        )
    app.output.line(
        f"{folder}: {done.reports} reports, {done.periods} of periods, {done.entries} entries of the log"
    )
    app.output.line(f"check them: pitr-audit --key {verifier or 'verifier.pub.pem'} {folder}")
    app.output.finish(
        {
            "folder": str(folder),
            "key_id": key.key_id,
            "reports": done.reports,
            "period_reports": done.periods,
            "log_entries": done.entries,
            "checkpoints": done.checkpoints,
            "uncovered": done.uncovered,
            "pdfs": pdfs,
        }
    )


@report.command("certify")
@click.argument("wanted", metavar="REPORT")
@click.option(
    "--key", "person_key", type=_FILE, required=True, help="The certifying person's own signing key."
)
@click.option("--name", required=True, help="Who certifies.")
@click.option("--role", required=True, help="What they are.")
@click.option(
    "--statement",
    default="I have reviewed this report and certify it.",
    show_default=True,
    help="What they say.",
)
@click.option("--reviewed-by", nargs=2, metavar="NAME ROLE", help="Who reviewed it before.")
@click.option("--corrective-action", multiple=True, help="What is to be done; may be repeated.")
@click.option(
    "--verifier-key",
    type=_FILE,
    help="The verifier's signing key (default: verifier.key beside the configuration).",
)
@common_options
def certify(
    wanted: str,
    person_key: Path,
    name: str,
    role: str,
    statement: str,
    reviewed_by: tuple[str, str] | None,
    corrective_action: tuple[str, ...],
    verifier_key: Path | None,
) -> None:
    """Certify a report as a named person, with their own key; the log tells of it.

    REPORT is a number or an id. One person certifies a report once; to do it again shows what was said.
    """
    from cli.key_files import read_signing_key
    from cli.report_log import choose_report, open_log
    from verifiers.report_series import certify_report, logged_reports

    app = current()
    person = read_signing_key(person_key)
    words = {
        "name": name,
        "role": role,
        "statement": statement,
        "reviewed_by": {"name": reviewed_by[0], "role": reviewed_by[1]} if reviewed_by else None,
        "corrective_actions": list(corrective_action),
    }
    with open_log(app, verifier_key) as log:
        chosen = choose_report(logged_reports(log.entries()), wanted)
        made = certify_report(log, chosen, person, words, datetime.now(UTC))
    by = made.predicate["certified_by"]
    app.output.line(f"report {chosen.number} ({chosen.report_id}) is certified by {by['name']}, {by['role']}")
    app.output.finish(
        {
            "report_id": chosen.report_id,
            "certification_sha256": made.payload_sha256,
            "certification": made.predicate,
        }
    )
