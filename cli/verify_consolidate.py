"""After a chain was proved: a full backup is made of it, by the verifier, which has all that this needs.

Never on the host that writes the archive: its disks and network are the database's.  What fails here takes
nothing from the proof; the next verification tries again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cli.config import may_be_there
from cli.context import App
from cli.errors import UsageRefused
from pitr.errors import PitrError
from storage.store import StoreError
from verifiers.log_entry import EntryKind

if TYPE_CHECKING:
    from cli.settings import Settings
    from cli.verify_settings import VerifySettings
    from cli.wiring import Reader
    from pitr.restore_plan import RestorePlan
    from verifiers.audit_log import AuditLog
    from verifiers.statement import SignedStatement

# One at a time; what a killed run left here, the next one wipes.
FOLDER_NAME: Final = "consolidation"


def why_not_here(settings: Settings) -> str | None:
    """Return why this host must not consolidate; None if it may."""
    if may_be_there(settings.keys.signing_key_file):
        return f"this is the host that writes the archive: its key is {settings.keys.signing_key_file}"
    return None


def consolidate_proved(
    app: App,
    settings: Settings,
    config: VerifySettings,
    reader: Reader,
    plan: RestorePlan,
    report: SignedStatement,
    log: AuditLog,
) -> str | None:
    """Consolidate the chain that a report proves, and log it; return the full backup, None without one.

    Raises StoreError, PitrError if it cannot be logged.
    """
    from cli.consolidate import consolidate_chain
    from cli.restore_scratch import scratch_place

    predicate = report.predicate
    if not plan.parents or predicate["result"]["overall"] != "PASSED":
        return None
    reason = why_not_here(settings)
    made: str | None = None
    if reason is None:
        fields: dict[str, object] = {}
        app.output.note(f"making a full backup of the proved chain of {plan.backup.backup}")
        try:
            with scratch_place(config.scratch_dir / FOLDER_NAME) as place:
                done = consolidate_chain(
                    app, reader, plan.archive, plan.backup.backup, place, fields, lambda *_: None
                )
            made = done.manifest.backup
            if done.lagging:
                app.output.warn(f"backup {made} is not yet in {', '.join(done.lagging)}: pitr repair")
        except (PitrError, StoreError, UsageRefused, OSError) as cause:
            reason = str(cause)
    facts: dict[str, object] = {
        "archive": str(plan.archive),
        "stands_for": plan.backup.backup,
        "chain": [plan.backup.backup, *(one.backup for one in plan.parents)],
        "backup": made,
        "reason": None if reason is None else reason[:2000],
    }
    log.append(EntryKind.CONSOLIDATED, predicate["identity"]["run_id"], facts, datetime.now(UTC))
    if reason is not None:
        app.output.warn(f"the chain of backup {plan.backup.backup} was not consolidated: {reason}")
    else:
        app.output.note(f"backup {made} stands for the proved chain of {plan.backup.backup}")
    return made
