"""A drill of components: each region alone, the keys, one piece of WAL, and what ``doctor`` says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from cli.drill_choice import DrillRun
from cli.planning import look
from cli.regions import open_regions
from cli.settings import RegionSettings
from cli.verify_facts import product_version, report_facts
from cli.wiring import open_reader
from pitr.datakeys import DataKeys
from pitr.errors import PitrError
from pitr.pipeline.keys import Recipient
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from storage.store import StoreError
from verifiers.base import Finding, Severity
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker
from verifiers.drill_components import (
    SLOT_CHECKS,
    check_findings,
    check_keys,
    check_piece,
    check_regions,
    choose_piece,
)
from verifiers.drill_report import draft_components
from verifiers.store_probes import probe_envelope
from verifiers.verify_values import Verified

if TYPE_CHECKING:
    from cli.wiring import Reader
    from pitr.pipeline.sign import Verifier
    from storage.regions import Region

_NOT_HERE = "this machine is not the database's host: the signing key of its archive is not here"


def run_components(run: DrillRun, verifier: Verifier) -> dict[str, Any]:
    """Try each part, and return the report's draft.  Raises NotInitialised, StoreError, KeyMissing."""
    maker = CheckMaker(product_version())
    with open_reader(run.settings, identity_path=run.source.identity_path) as reader:
        looked = look(reader, run.source, run.app.output)
        plan = plan_restore(RecoveryTarget("latest"), looked.survey)
        openings = {one.name: partial(_open, one) for one in run.settings.regions}
        repository = run.settings.repository.repository
        checks = check_regions(openings, repository, verifier, datetime.now(UTC).date(), maker)
        sound = [one.id.partition(".")[2] for one in checks if one.outcome is Outcome.PASSED]
        checks.append(check_keys(lambda: _probe_keys(run, reader), maker))
        keys = list(dict.fromkeys(link.unit.key for link in plan.links))
        checks.append(_check_piece(run, reader, sound, lambda: choose_piece(keys, run.place.run_id), maker))
        checks += _doctor(run, maker)
        found = Verified(checks=checks)
        facts = report_facts(
            run.app,
            run.settings,
            run.config,
            run.occasion,
            reader,
            plan,
            run.ready.region,
            postgres=None,
            age_ms=None,
            locks={},
        )
        return draft_components(facts, found)


def _open(region: RegionSettings) -> Region:
    return open_regions([region])[0]


def _probe_keys(run: DrillRun, reader: Reader) -> Finding:
    assert reader.identity is not None, "it was asked for"
    return probe_envelope(
        [Recipient.parse(text) for text in run.settings.keys.recipients],
        reader.identity.identity,
        run.settings.repository.repository,
        now=datetime.now(UTC),
        random=os.urandom,
    )


def _check_piece(
    run: DrillRun, reader: Reader, sound: list[str], choose: Callable[[], Any], maker: CheckMaker
) -> CheckResult:
    """Read from one of the regions that answer, which nobody chooses; where none does, from the first."""
    assert reader.identity is not None, "it was asked for"
    names = sound or [run.settings.regions[0].name]
    number = hashlib.sha256(run.place.run_id.encode()).digest()[-1]
    name = names[number % len(names)]
    settings = next(one for one in run.settings.regions if one.name == name)
    repository = reader.repository.alone(_open(settings).store)
    keys = DataKeys(reader.repository, reader.identity.identity)
    return check_piece(repository, name, choose, keys, maker)


def _doctor(run: DrillRun, maker: CheckMaker) -> list[CheckResult]:
    """D04 and D05: what ``doctor`` says of server, host and keys, where it can run."""
    found: list[Finding] | None = None
    # Not Path.exists: that raises where the folder may not be searched, and then the key is not ours to use.
    if os.path.exists(run.settings.keys.signing_key_file):  # noqa: PTH110
        from cli.doctor import examine

        try:
            found = list(examine(run.settings, None))
        except (PitrError, StoreError, OSError) as cause:
            found = [Finding("doctor", Severity.FAIL, "doctor", str(cause))]
    slot = None if found is None else [one for one in found if one.id in SLOT_CHECKS]
    rest = None if found is None else [one for one in found if one.id not in SLOT_CHECKS]
    return [
        check_findings("D04", slot, _NOT_HERE, maker),
        check_findings("D05", rest, _NOT_HERE, maker),
    ]
