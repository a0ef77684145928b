"""``pitr demo``: the whole way once, on a throw-away cluster, in a minute or so."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.errors import ChecksFailed, UsageRefused
from cli.output import format_seconds

if TYPE_CHECKING:
    from cli.demo_run import DemoResult

# A socket's path has at most 107 bytes, and the demo adds some thirty to its folder's.
FOLDER_BYTES_MAX = 60


@click.command()
@click.option(
    "--keep", type=click.Path(path_type=Path), metavar="DIR", help="Work in DIR and leave it all there."
)
@click.option(
    "--pg",
    "major",
    type=click.IntRange(15),
    default=17,
    show_default=True,
    help="PostgreSQL's major version.",
)
@click.option(
    "--s3", "uses_s3", is_flag=True, help="Regions on a real S3 server (versitygw) instead of directories."
)
@click.option(
    "--verify", "verifies", is_flag=True, help="End with a verification; its signed report is in DIR/reports."
)
@common_options
def demo(keep: Path | None, major: int, uses_s3: bool, verifies: bool) -> None:
    """Show the whole way on a throw-away cluster, in a minute.

    A clerk commits to a small hospital's database and writes down every acknowledged commit, WAL is
    streamed to three regions, and a base backup is taken under load. Then somebody deletes a table, drops
    another, the host is lost and a region destroyed. From what is left the cluster is restored to the
    moment before, and every row is compared. Exit code 7 if anything is off.
    """
    from cli.demo_run import DemoChoices, DemoRun

    app = current()
    begun = time.monotonic()
    folder = _folder(keep)
    try:
        result = DemoRun(DemoChoices(folder, major, uses_s3, verifies), app.output.note).run()
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    _tell(app, result, time.monotonic() - begun, keep)


def _folder(keep: Path | None) -> Path:
    """Return the folder to work in; the server's user must be able to pass through it."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="pitr-demo-"))
    else:
        folder = keep.absolute()
        if folder.exists() and any(folder.iterdir()):
            raise UsageRefused(f"{folder} is not empty", hint="name a new directory with --keep")
        folder.mkdir(parents=True, exist_ok=True)
    if len(str(folder)) > FOLDER_BYTES_MAX:
        raise UsageRefused(
            f"the path {folder} is too long", detail="PostgreSQL's socket lies in it", hint="--keep /tmp/demo"
        )
    folder.chmod(0o755)
    return folder


def _tell(app: App, result: DemoResult, total_s: float, keep: Path | None) -> None:
    verdict = result.verdict
    fields: dict[str, object] = {
        "is_right": verdict.is_right,
        "steps": [
            {"step": one.name, "seconds": round(one.seconds, 3), "note": one.note} for one in result.steps
        ],
        "moment": result.moment.at.isoformat(),
        "commits": result.commits,
        "commits_before_moment": verdict.expected,
        "missing": verdict.missing,
        "unexpected": verdict.unexpected,
        "rpo_p50_s": round(result.rpo_p50_s, 3),
        "rpo_max_s": round(result.rpo_max_s, 3),
        "rto_s": round(result.rto_s, 3),
        "total_s": round(total_s, 3),
        "verified": result.verified,
        "kept": str(keep) if keep is not None else None,
    }
    if not app.output.is_json:
        show_report(app, result, total_s)
        if keep is not None:
            app.output.line(f"everything is in {keep}")
    if not verdict.is_right:
        app.partial_result = fields
        raise ChecksFailed(
            "the restored cluster is not what was promised",
            detail=f"{verdict.missing} commits missing, {verdict.unexpected} unexpected, "
            f"{verdict.bills_differ} bills differ, {verdict.patients} patients,"
            f" {verdict.notes_differ} notes differ",
            hint="repeat with --keep DIR and report what is in it",
        )
    if result.verified is not None and result.verified["verdict"] == "FAILED":
        app.partial_result = fields
        raise ChecksFailed("the verification found something wrong", hint="read its checks with --json")
    app.output.finish(fields)


def show_report(app: App, result: DemoResult, total_s: float) -> None:
    """Write what a person reads at the end: each step's time, what was measured, and the verdict."""
    from rich.table import Table

    from cli.demo_verify import describe_verdict

    table = Table(title="pitr demo", title_justify="left")
    table.add_column("step")
    table.add_column("time", justify="right")
    table.add_column("what came of it")
    for step in result.steps:
        table.add_row(step.name, format_seconds(step.seconds), step.note)
    table.add_section()
    table.add_row(
        "RPO: acknowledged to at quorum",
        f"{result.rpo_max_s:.2f} s",
        f"at most; median {result.rpo_p50_s:.2f} s",
    )
    table.add_row(
        "RTO: command to open cluster", format_seconds(result.rto_s), "files, WAL, proof, promotion"
    )
    app.output.console(on_stderr=False).print(table)
    verdict = result.verdict
    words = (
        "every acknowledged commit before it is there, and nothing after it" if verdict.is_right else "WRONG"
    )
    app.output.line(f"restored to {result.moment.at.isoformat()}: {words}")
    if result.verified is not None:
        app.output.line(describe_verdict(result.verified))
    app.output.line(f"{verdict.expected} commits compared, in {format_seconds(total_s)} all in all")
