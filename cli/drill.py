"""``pitr drill``: recovery rehearsed on scratch, measured as clients see it, signed; and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from cli.context import common_options, current
from cli.errors import UsageRefused
from cli.verify_options import Said, verifier_options, with_paths

if TYPE_CHECKING:
    from cli.verify_settings import VerifySettings

_FOLDER = click.Path(path_type=Path)
_KINDS = ("components", "failover", "full", "disaster")


@click.group()
def drill() -> None:
    """Rehearse recovery: start a drill, list drills and findings, show one."""


@drill.command("start")
@click.argument("what", metavar="KIND|FILE")
@click.option("--at", "target", metavar="TARGET", help="Restore to this moment, not to the latest.")
@click.option("--corrupted-at", metavar="TARGET", help="When the data was spoilt: restore to just before.")
@click.option("--without-region", metavar="NAME", help="The region that is lost.")
@verifier_options
@common_options
def start(
    what: str,
    target: str | None,
    corrupted_at: str | None,
    without_region: str | None,
    identity: Path | None,
    archive: str | None,
    scratch: Path | None,
    reports: Path | None,
    key: Path | None,
    due: str | None,
    mirror: bool,
    scheduled: bool,
    **said: Unpack[Said],
) -> None:
    """Rehearse a recovery on scratch, measure it, and sign what was seen.

    KIND is components (each part alone), failover (a region is lost), full (the primary is lost) or disaster
    (both); FILE is a scenario, as in examples/drills. Production is not touched, the store loses nothing, and
    what was restored is wiped. That it will run is logged before. Exit code 7 if a check failed.
    """
    from cli.drill_choice import DrillChoices
    from cli.drill_flow import DrillFlow
    from cli.events_cluster import verified_over_mirror
    from cli.units import read_duration_option
    from cli.verdict_view import run_shown

    app = current()
    settings = verified_over_mirror(app.settings()) if mirror else app.settings()
    config = with_paths(settings.verify_or_default, scratch_dir=scratch, key_file=key)
    kind, scenario = _chosen(what, config)
    if scenario is None and any((target, corrupted_at, without_region)):
        hint = "leave out --at, --corrupted-at and --without-region"
        raise UsageRefused("components are not restored", hint=hint)
    choices = DrillChoices(
        kind=kind,
        scenario=scenario,
        target=target,
        corrupted_at=corrupted_at,
        without_region=without_region,
        identity=identity,
        archive=archive,
        reports_dir=None if reports is None else reports.absolute(),
        is_scheduled=scheduled,
        due_s=None if due is None else read_duration_option("--due", due),
        **said,
    )
    done = run_shown(app, lambda tell: DrillFlow(app, settings, config, choices, tell).run())
    if done is None:
        app.output.line("no drill is due")
        app.output.finish({"is_not_due": True})
        return
    from cli.drill_view import tell_done

    tell_done(app, done)


def _chosen(what: str, config: VerifySettings) -> tuple[Any, Any]:
    """Return the kind and, but for components, the scenario.  Raises ConfigRefused."""
    from verifiers.drill_scenario import DrillKind, built_in

    if what not in _KINDS:
        from cli.drill_file import read_scenario

        scenario = read_scenario(Path(what))
        return scenario.kind, scenario
    kind = DrillKind(what)
    if kind is DrillKind.COMPONENTS:
        return kind, None
    path = config.drills.scenarios.get(kind)
    if path is not None:
        from cli.drill_file import read_scenario

        return kind, read_scenario(path)
    return kind, built_in(kind, clients=config.drills.clients, load_s=config.drills.load_s)


@drill.command("list")
@click.option("--findings", "shows_findings", is_flag=True, help="List findings, and where each stands.")
@click.option("--all", "shows_all", is_flag=True, help="Closed findings, too.")
@click.option("--region", metavar="NAME", help="Read this configured region alone.")
@click.option(
    "--verifier",
    type=_FOLDER,
    help="The verifier's public key (default: verifier.pub.pem beside the configuration).",
)
@common_options
def list_drills(shows_findings: bool, shows_all: bool, region: str | None, verifier: Path | None) -> None:
    """List drills: what is due, what was missed, and the four metrics with their trend.

    From the verifier's log and its signed reports. Exit code 8 if they were changed.
    """
    from cli.drill_view import read_record, tell_findings, tell_series

    app = current()
    record = read_record(app, region, verifier)
    if shows_findings:
        tell_findings(app, record, is_all=shows_all)
    else:
        tell_series(app, record)


@drill.command("report")
@click.argument("wanted", metavar="REPORT", default="newest")
@click.option("--region", metavar="NAME", help="Read this configured region alone.")
@click.option(
    "--verifier",
    type=_FOLDER,
    help="The verifier's public key (default: verifier.pub.pem beside the configuration).",
)
@common_options
def show_drill(wanted: str, region: str | None, verifier: Path | None) -> None:
    """Show a drill's report: by its number or id, or the newest. With --json the whole statement."""
    from cli.drill_view import read_drill, tell_report

    app = current()
    tell_report(app, read_drill(app, wanted, region, verifier))
