"""A restore that was interrupted, typed again: it goes on to what the words meant the first time."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cli.context import App
from cli.output import Output
from cli.plan_sources import Planned
from cli.planning import look, plan_from
from cli.reading import Source

if TYPE_CHECKING:
    from cli.restore import Chosen
    from cli.wiring import Reader
    from pitr.recovery import RecoveryTarget
    from pitr.restore_aim import Asked


@dataclass(frozen=True, slots=True)
class Meant:
    """The options that say which moment is meant, as they were typed."""

    target: str
    is_exclusive: bool
    timeline: str
    backup: str | None
    without: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Return them as they stand after ``--to``."""
        words = [self.target]
        words += ["--exclusive"] if self.is_exclusive else []
        words += ["--timeline", self.timeline] if self.timeline != "latest" else []
        words += ["--backup", self.backup] if self.backup is not None else []
        return words + [word for one in self.without for word in ("--without", one)]


def asked_of(app: App, meant: Meant, into: Path, source: Source, action: str, chosen: Chosen) -> Asked:
    """Return what was typed: the words of the target, and the command with all that makes it this restore."""
    from pitr.restore_aim import Asked
    from storage.url import shown_url

    words = ["pitr", "restore", "--to", *meant.words, "--into", str(into)]
    # A password in a URL must not be kept, nor shown.
    words += [word for url in source.urls for word in ("--from", shown_url(url) if "@" in url else url)]
    options = {
        "--config": app.config_path,
        # A time without a zone means nothing, or another moment, without it.
        "--tz": app.zone,
        "--identity": source.identity_path,
        "--region": source.region,
        "--archive": source.archive,
        "--replace-cluster": chosen["replace_cluster"],
        "--wal-dir": chosen["wal_dir"],
        "--owner": chosen["owner"],
        "--superuser": chosen["superuser"],
        "--action": None if action == "promote" else action,
    }
    words += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    words += [word for one in chosen["tablespace_map"] for word in ("--tablespace-map", one)]
    words += ["--delta"] if chosen["delta"] else []
    words += ["--start"] if chosen["start"] else []
    words += ["--replay"] if chosen["replay"] else []
    words += ["--mirror"] if chosen["mirror"] else []
    words += [] if chosen["handlers"] is None else ["--handlers", str(chosen["handlers"])]
    words += [word for one in chosen["accepted"] for word in ("--accept-gap", one)]
    return Asked(shlex.join(meant.words), shlex.join(words), datetime.now(UTC))


def make_plan_again(
    reader: Reader,
    source: Source,
    parsed: RecoveryTarget,
    output: Output,
    meant: Meant,
    into: Path,
    *,
    replaces: bool,
) -> Planned:
    """Return the plan: where the same words began a restore that was interrupted, the one to its moment.

    Raises as ``plan_from``, and RestoreRefused if that restore cannot be gone on with.
    """
    from pitr.errors import RestoreRefused, TargetRefused
    from pitr.restore_again import interrupted_aim

    aim = interrupted_aim(into.absolute(), replaces=replaces)
    if aim is None or aim.asked.target != shlex.join(meant.words):
        looked = look(reader, source, output, without=meant.without)
        plan = plan_from(looked, reader, source, parsed, output, backup_id=meant.backup)
        return Planned(plan, looked.survey.backups, looked.read.unseen)
    output.note(f"goes on with {aim}")
    source = replace(source, archive=str(aim.archive))
    try:
        looked = look(reader, source, output)
        plan = plan_from(looked, reader, source, aim.target, output, backup_id=aim.backup)
    except TargetRefused as cause:
        raise RestoreRefused(
            f"{into} holds an interrupted restore that cannot be gone on with",
            detail=f"{aim}; {cause.message}" + (f": {cause.detail}" if cause.detail else ""),
            hint=f"move {into} and {into}.pitr away, and begin anew",
        ) from cause
    return Planned(plan, looked.survey.backups, looked.read.unseen)
