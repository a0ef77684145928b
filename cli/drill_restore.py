"""A drill that restores: the regions without the one that is lost, the steps, the load, and the draft."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from cli.drill_choice import DrillRun
from cli.drill_failure import AtFailure, look_at_failure
from cli.map_sources import with_map
from cli.planning import look, plan_from
from cli.verify_events import events_look
from cli.verify_facts import product_version, report_facts, verify_request
from cli.wiring import open_reader
from pitr.postgres.load_client import LoadClient, probe_latencies_us
from storage.observed import RequestCount
from verifiers.check_maker import CheckMaker
from verifiers.client_load import ClientLoad
from verifiers.drill_report import RestoreDrill, check_cut, check_lost, draft_drill
from verifiers.drill_scenario import Action
from verifiers.drill_steps import DrillSteps, Failure
from verifiers.load_figures import Histogram, histogram_of
from verifiers.ransomware import ransomware_group
from verifiers.scratch import check_room
from verifiers.source_locks import least_locks
from verifiers.verify_run import verify

_PROBES: Final = 40
_PROBE_PAUSE_S: Final = 0.05
_REQUEST_TIMEOUT_S: Final = 5.0
_WHY_NO_COMPARISON: Final = (
    "a drill restores to serve clients, and goes on to no fingerprint: pitr verify does"
)


def run_restore(run: DrillRun, on_progress: Callable[[Any], None]) -> dict[str, Any]:
    """Carry the scenario out, and return the report's draft.  Raises as a verification does."""
    cancel = threading.Event()
    maker = CheckMaker(product_version())
    load = _load_of(run)
    seen: list[AtFailure] = []
    steps = DrillSteps(
        _scenario(run),
        maker,
        load,
        cancel,
        cut=run.ready.cut,
        at_failure=lambda: seen.append(look_at_failure(run)),
    )
    before = _before(run, cancel)
    try:
        failure = steps.before()
        return _restored(run, steps, failure, seen[0], load, before, maker, cancel, on_progress)
    finally:
        steps.stop()


def _restored(
    run: DrillRun,
    steps: DrillSteps,
    failure: Failure,
    seen: AtFailure,
    load: ClientLoad | None,
    before: Histogram | None,
    maker: CheckMaker,
    cancel: threading.Event,
    on_progress: Callable[[Any], None],
) -> dict[str, Any]:
    """Rebuild the service from the regions that are left; all of it counts as time of recovery."""
    ready, target = run.ready, run.ready.target
    assert target is not None, "it restores"
    counts: dict[str, RequestCount] = {}
    identity = run.source.identity_path
    with open_reader(
        run.settings, identity_path=identity, first=ready.region, without=ready.cut, counts=counts
    ) as reader:
        anew = look(reader, run.source, run.app.output)
        looked = seen.bound(anew)
        plan = plan_from(looked, reader, run.source, target.target, run.app.output, backup_id=target.backup)
        check_room(run.place.path, plan.backup.size_bytes)
        request = replace(
            verify_request(run.settings, run.config, reader, looked, plan, run.place, ready.region),
            service=steps,
            why_no_comparison=_WHY_NO_COMPARISON,
            events=events_look(run.settings, reader, run.source, run.app.output),
        )
        run.app.output.note(f"drilling {plan.target} from region {ready.region}, backup {plan.backup.backup}")
        found = verify(request, begun=failure.monotonic_s, on_progress=on_progress, cancel=cancel)
        is_latest = plan.target.kind == "latest"
        found.checks += steps.results(found)
        if ready.cut is not None:
            asked = {name: one.calls for name, one in counts.items()}
            found.checks.append(check_cut(ready.cut, asked, maker))
        found.checks.append(check_lost(seen.lost, is_latest, run.occasion.policy.rpo_ms, maker))
        facts = report_facts(
            run.app,
            run.settings,
            run.config,
            run.occasion,
            reader,
            plan,
            ready.region,
            postgres=request.installation.tool("postgres"),
            age_ms=seen.age_ms(failure.at),
            locks=least_locks(reader.store.regions, plan),
        )
        facts = with_map(facts, reader, anew, run.app.output)
    steps.stop()
    drill = RestoreDrill(
        _scenario(run),
        failure.at,
        seen.lost,
        is_latest,
        None if load is None else load.fields(before),
        ransomware_group(looked.survey.backups, target.clean_point) if target.is_attack else None,
    )
    return draft_drill(facts, found, drill)


def _load_of(run: DrillRun) -> ClientLoad | None:
    step = _scenario(run).step(Action.LOAD)
    if step is None:
        return None

    def make() -> LoadClient:
        return LoadClient(
            database=step.database or "postgres",
            query=step.query or "SELECT 1",
            timeout_s=_REQUEST_TIMEOUT_S,
        )

    return ClientLoad(step.clients or run.config.drills.clients, make)


def _before(run: DrillRun, cancel: threading.Event) -> Histogram | None:
    """Ask the production server ``SELECT 1``, where the configuration allows that; else nothing."""
    if not run.config.drills.probes_production:
        return None
    dsn = run.settings.cluster.dsn
    latencies = probe_latencies_us(dsn, count=_PROBES, pause_s=_PROBE_PAUSE_S, sleep=cancel.wait)
    if not latencies:
        run.app.output.warn("the production server gave no answer: latency before the failure is not known")
        return None
    return histogram_of(latencies)


def _scenario(run: DrillRun) -> Any:
    assert run.choices.scenario is not None, "it restores"
    return run.choices.scenario
