"""``pitr verify``: restore into a scratch place, check it in every way, and sign what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from cli.context import App, common_options, current
from cli.errors import UsageRefused
from cli.verify_options import Said, verifier_options, with_paths

if TYPE_CHECKING:
    from cli.verify_flow import VerifyDone
    from cli.verify_settings import VerifySettings


@click.command()
@click.option("--latest", is_flag=True, help="Verify the newest moment that is archived.")
@click.option("--at", "target", metavar="TARGET", help="Verify this moment: a time with zone, lsn:X/Y …")
@click.option("--random", "is_random", is_flag=True, help="Verify a moment that a logged seed draws.")
@click.option(
    "--from", "urls", multiple=True, metavar="URL", help="A region; needs no configuration; may be repeated."
)
@click.option(
    "--region", metavar="NAME|auto", default="auto", show_default=True, help="Read from this region."
)
@click.option("--without-region", metavar="NAME", help="Do as if this region were lost.")
@click.option(
    "--checks", type=click.Path(path_type=Path), help="Folder of own queries: *.sql, to return no row."
)
@verifier_options
@common_options
def verify(
    latest: bool,
    target: str | None,
    is_random: bool,
    identity: Path | None,
    urls: tuple[str, ...],
    region: str,
    without_region: str | None,
    archive: str | None,
    scratch: Path | None,
    reports: Path | None,
    checks: Path | None,
    key: Path | None,
    due: str | None,
    mirror: bool,
    scheduled: bool,
    **said: Unpack[Said],
) -> None:
    """Prove that the cluster can be restored, and sign the proof.

    Restores from the store alone into a scratch place, starts PostgreSQL there without a network, recovers
    exactly to the target, runs the checks of docs/verify.md, measures, and wipes it all. That it will run is
    logged before it does; the report is signed with the verifier's own key. Exit code 7 if a check failed.
    With --from, --identity and --key it needs no configuration.
    """
    from cli.events_cluster import verified_over_mirror
    from cli.units import read_duration_option
    from cli.verdict_view import run_shown
    from cli.verify_bare import NOTE, bare_settings
    from cli.verify_choice import VerifyChoices
    from cli.verify_flow import VerifyFlow

    app = current()
    _check_words((latest, target is not None, is_random), region, without_region, (bool(urls), scheduled))
    settings = bare_settings(app, urls, identity, key, archive) if urls else app.settings()
    settings = verified_over_mirror(settings) if mirror else settings
    config = with_paths(settings.verify_or_default, scratch_dir=scratch, checks_dir=checks, key_file=key)
    choices = VerifyChoices(
        method="latest" if latest else "given" if target is not None else "random" if is_random else None,
        target=target,
        region=None if region == "auto" else region,
        without_region=without_region,
        identity=identity,
        archive=archive,
        reports_dir=None if reports is None else reports.absolute(),
        is_scheduled=scheduled,
        due_s=None if due is None else read_duration_option("--due", due),
        notes=(NOTE,) if urls else (),
        **said,
    )
    done = run_shown(app, lambda tell: VerifyFlow(app, settings, config, choices, tell).run())
    if done is None:
        app.output.line("no verification is due")
        app.output.finish({"is_not_due": True})
    else:
        _tell(app, done, config)


def _check_words(
    targets: tuple[bool, ...], region: str, without_region: str | None, sources: tuple[bool, ...]
) -> None:
    """Raise UsageRefused for words that exclude each other."""
    if sum(targets) > 1:
        raise UsageRefused("--latest, --at and --random exclude each other")
    if region != "auto" and region == without_region:
        raise UsageRefused(f"region {region} cannot be read from and be lost", hint="leave out one of them")
    if all(sources):
        raise UsageRefused("--from and --scheduled exclude each other")


def verify_fields(done: VerifyDone) -> dict[str, object]:
    """Return what a program reads."""
    predicate = done.report.predicate
    return {
        "run": done.run_id,
        "report": predicate["identity"]["report_id"],
        "number": predicate["identity"]["series_seq"],
        "report_sha256": done.report.payload_sha256,
        "verdict": predicate["result"]["overall"],
        "rto_met": predicate["result"]["rto_met"],
        "rpo_met": predicate["result"]["rpo_met"],
        "limits": predicate["result"]["limits"],
        "region": done.region,
        "backup": done.plan.backup.backup,
        "target": predicate["request"],
        "sampling": predicate["trigger"]["sampling"],
        "recovery_time_ms": predicate["timings"]["recovery_time_ms"],
        "data_loss_ms": predicate["data_loss"]["data_loss_ms"],
        "checks": predicate["checks"],
        "findings": predicate["findings"],
        "segregation": predicate["target"]["segregation"],
        "reports_dir": None if done.reports_dir is None else str(done.reports_dir),
        "lagging_regions": list(done.lagging),
        "consolidated": done.consolidated,
    }


def _tell(app: App, done: VerifyDone, config: VerifySettings) -> None:
    from cli.output import format_seconds
    from cli.verdict_view import finish_verdict, show_checks

    fields = verify_fields(done)
    output = app.output
    predicate = done.report.predicate
    show_checks(output, predicate)
    took_ms = predicate["timings"]["recovery_time_ms"]
    output.line(f"{fields['verdict']}: report {fields['number']}, {fields['report']}")
    if took_ms is not None:
        goal = "" if config.rto_s is None else f"; the objective is {format_seconds(config.rto_s)}"
        output.line(f"recovery took {format_seconds(took_ms / 1000)}{goal}")
    for limit in predicate["result"]["limits"]:
        output.line(f"limit: {limit}")
    if done.consolidated is not None:
        output.line(f"backup {done.consolidated} stands for the chain that was proved")
    finish_verdict(
        app,
        predicate,
        fields,
        reports_dir=done.reports_dir,
        lagging=done.lagging,
        failed="the restored cluster did not prove right",
        hint="read the checks above",
    )
