"""What a search found, for people and for programs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from cli.context import App
from cli.output import Output, format_seconds
from cli.reading import Source
from pitr.recovery import instant_text, local_text
from pitr.wal.changes import Operation

if TYPE_CHECKING:
    from datetime import datetime

    from pitr.wal.changes import RelationFile
    from verifiers.find_commits import Touched
    from verifiers.find_run import Found, Probe

_SHOWN_MAX: Final = 20
INTO: Final = "NEW_DIRECTORY"
_VERBS: Final = {
    Operation.INSERT: "inserted",
    Operation.UPDATE: "updated",
    Operation.DELETE: "deleted",
    Operation.LOCK: "locked",
}


def restore_words(app: App, source: Source, found: Found, timeline: str) -> list[str]:
    """Return the command that restores the last good moment; its last word is to be replaced."""
    words = ["pitr"]
    if app.config_path is not None and not source.urls:
        words += ["-c", str(app.config_path)]
    words += ["restore", "--to", f"lsn:{found.deed.end.start}", "--exclusive"]
    if timeline != "latest":
        words += ["--timeline", timeline]
    for url in source.urls:
        words += ["--from", url]
    words += ["--identity", str(source.identity_path)]
    if source.region is not None:
        words += ["--region", source.region]
    if source.archive is not None:
        words += ["--archive", source.archive]
    return [*words, "--into", INTO]


def show_found(output: Output, found: Found, zone: str, words: list[str]) -> None:
    """Tell a person."""
    deed, plan = found.deed, found.plan
    assert plan.stop is not None, "it was resolved"
    before = None if plan.commits is None else plan.commits.before
    rows = [("last good", f"{plan.stop.replay_end}, before transaction {deed.end.xid}")]
    if before is not None:
        rows.append(("", f"the last commit in it: transaction {before.xid}, {_moment(before.at, zone)}"))
    rows.append(("then", f"transaction {deed.end.xid} committed at {deed.end.start}"))
    rows.append(("", _moment(deed.at, zone)))
    if deed.subtransactions:
        rows.append(("", f"with {deed.subtransactions} subtransactions"))
    for number, one in enumerate(deed.touched[:_SHOWN_MAX]):
        rows.append(("touched" if number == 0 else "", f"{_name(found, one.file)}: {_counts(one)}"))
    if len(deed.touched) > _SHOWN_MAX:
        rows.append(("", f"and {len(deed.touched) - _SHOWN_MAX} more: --json has them"))
    if not deed.touched:
        rows.append(("touched", "no table, as far as its WAL was read"))
    if not deed.is_complete:
        rows.append(("", "it may have begun before the WAL that was read: what it did there is not counted"))
    tally = found.tally
    looked = (
        f"{len(found.probes)} times, among {found.candidates} of {found.all_commits} transactions;"
        f" {tally.restores} restored, {tally.rewound} back to the kept copy,"
        f" {format_seconds(sum(one.seconds for one in found.probes))}"
    )
    rows.append(("looked", looked))
    for name, text in rows:
        output.line(f"{name.ljust(9)} {text}")
    if not found.is_cut_off:
        output.warn("the scratch server was not cut off from the network: this host allows no namespace")
    output.line()
    output.line(shlex.join(words))


def found_fields(found: Found, words: list[str]) -> dict[str, object]:
    """Return what a program reads."""
    deed, plan = found.deed, found.plan
    assert plan.stop is not None, "it was resolved"
    before = None if plan.commits is None else plan.commits.before
    return {
        "last_good": {
            "target": f"lsn:{deed.end.start}",
            "is_inclusive": False,
            "replay_end": str(plan.stop.replay_end),
            "timeline": str(plan.timeline),
            "last_commit": None
            if before is None
            else {"xid": before.xid, "lsn": str(before.start), "at": instant_text(before.at)},
        },
        "transaction": {
            "xid": deed.end.xid,
            "lsn": str(deed.end.start),
            "end": str(deed.end.end),
            "at": instant_text(deed.at),
            "began_at": None if deed.began_at is None else str(deed.began_at),
            "subtransactions": deed.subtransactions,
            "is_complete": deed.is_complete,
            "touched": [
                {
                    "relation": found.names.get(one.file),
                    "database": one.file.database,
                    "filenode": one.file.number,
                    "is_catalogue": one.file.is_catalogue,
                    "rows": {str(name): count for name, count in one.rows.items()},
                }
                for one in deed.touched
            ],
        },
        "candidates": found.candidates,
        "commits": found.all_commits,
        "looks": [_probe_fields(one) for one in found.probes],
        "restores": found.tally.restores,
        "from_kept_copy": found.tally.rewound,
        "kept_copies": found.tally.kept_copies,
        "opened": found.tally.opened,
        "seconds": sum(one.seconds for one in found.probes),
        "is_cut_off": found.is_cut_off,
        "restore_command": words,
    }


def _probe_fields(probe: Probe) -> dict[str, object]:
    return {
        "number": probe.number,
        "target": str(probe.target),
        "is_inclusive": probe.target.is_inclusive,
        "lsn": str(probe.lsn),
        "way": probe.way,
        "is_healthy": probe.is_good,
        "answer": probe.answer,
        "seconds": probe.seconds,
    }


def _name(found: Found, file: RelationFile) -> str:
    known = found.names.get(file)
    return known or f"relation file {file.number} of database {file.database}"


def _counts(one: Touched) -> str:
    parts = [
        f"{count} rows {_VERBS[name]}" if count != 1 else f"1 row {_VERBS[name]}"
        for name, count in one.rows.items()
        if name in _VERBS
    ]
    if Operation.FILES in one.rows:
        parts.append("its files removed (DROP, TRUNCATE or a rewrite)")
    if Operation.SEQUENCE in one.rows:
        parts.append("sequence moved on")
    if Operation.IN_PLACE in one.rows:
        parts.append("counters")
    return ", ".join(parts) or "changed"


def _moment(at: datetime, zone: str) -> str:
    return f"{instant_text(at)} = {local_text(at, zone)}"
