"""What ``pitr verify`` and ``pitr drill start`` have in common: their progress, and how a verdict ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cli.context import App
from cli.errors import ChecksFailed
from cli.output import Output
from verifiers.statement import Predicate

_Done = TypeVar("_Done")


def run_shown(app: App, run: Callable[[Callable[[Any], None]], _Done]) -> _Done:
    """Call ``run`` with what is to be told of its progress, and show that."""
    from cli.progress import ProgressReport
    from cli.restore import progress_words

    with ProgressReport(app.output) as report:
        return run(lambda progress: report.update(*progress_words(progress)))


def show_checks(output: Output, predicate: Predicate) -> None:
    """Write a line for each check."""
    for check in predicate["checks"]:
        said = check["observed"] if check["reason"] is None else check["reason"].splitlines()[0]
        output.line(f"{check['result'].ljust(7)} {check['id'].ljust(4)} {check['title']}: {said}")
    output.line()


def finish_verdict(
    app: App,
    predicate: Predicate,
    fields: dict[str, object],
    *,
    reports_dir: Path | None,
    lagging: Sequence[str],
    failed: str,
    hint: str,
) -> None:
    """End the command as its verdict says.  Raises ChecksFailed, in the words given, if a check failed."""
    output, verdict = app.output, predicate["result"]["overall"]
    if reports_dir is not None:
        output.line(f"exported to {reports_dir}")
    for name in lagging:
        output.warn(f"region {name} lacks a part of the report yet: pitr repair")
    if verdict == "FAILED":
        app.partial_result = fields
        ids = [check["id"] for check in predicate["checks"] if check["result"] == "FAILED"]
        number = predicate["identity"]["series_seq"]
        detail = f"failed: {', '.join(ids)}; report {number} is signed and says so"
        raise ChecksFailed(failed, detail=detail, hint=hint)
    if verdict == "WARNED":
        output.warn("the proof is not complete: a required check did not pass")
    output.finish(fields)
