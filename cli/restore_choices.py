"""What a restore is told about places that exist: where tablespaces go, and the cluster that it replaces."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import UsageRefused
from cli.output import Output, format_bytes

# A restore that was interrupted there needs the old directory no more; it may be the new one by now.
_PAST_FILES = ("placing", "recovering", "promoting", "renewing", "refusing")

if TYPE_CHECKING:
    from cli.restore import Action, Chosen
    from cli.wiring import Reader
    from pitr.restore_plan import RestorePlan


def check_choices(chosen: Chosen, action: Action, identity: Path | None) -> None:
    """Refuse options that do not go together, before anything is read.  Raises UsageRefused."""
    if identity is None:
        raise UsageRefused(
            "a restore needs the reader's identity", hint="--identity FILE; the recovery sheet has its text"
        )
    if chosen["start"] and action != "promote":
        raise UsageRefused("--start goes with --action promote only")
    if chosen["replay"] and not chosen["start"]:
        raise UsageRefused("--replay goes with --start only")
    if not chosen["replay"] and (chosen["handlers"] is not None or chosen["accepted"]):
        raise UsageRefused("--handlers and --accept-gap go with --replay only")
    if chosen["mirror"] and not chosen["replay"]:
        raise UsageRefused("--mirror goes with --replay only")
    if chosen["replace_cluster"] is not None and not chosen["delta"]:
        raise UsageRefused("--replace-cluster goes with --delta only")
    if chosen["wal_dir"] is not None and not chosen["wal_dir"].is_absolute():
        raise UsageRefused("--wal-dir needs an absolute path")
    read_mapping(chosen["tablespace_map"])


def read_mapping(texts: Sequence[str]) -> dict[str, Path]:
    """Return where each named tablespace goes.  Raises UsageRefused."""
    mapping: dict[str, Path] = {}
    for text in texts:
        # An old location may hold a "=" as well: the last one before a path parts them.
        old, separator, new = text.rpartition("=/")
        if not separator or not old:
            raise UsageRefused(
                f"not OLD=NEW with an absolute path: {text!r}", hint="--tablespace-map 16400=/new/place"
            )
        if old in mapping:
            raise UsageRefused(f"--tablespace-map {old} is given twice")
        place = Path("/" + new)
        if ".." in place.parts:
            raise UsageRefused(f"--tablespace-map {text}: the place must not contain '..'")
        mapping[old] = place
    return mapping


def show_delta(
    output: Output,
    reader: Reader,
    plan: RestorePlan,
    into: Path,
    chosen: Chosen,
) -> dict[str, object] | None:
    """Compare the old directory with the backup; say what is fetched and kept, and return it for JSON.

    None if there is no old directory, or a restore into it was interrupted when it had all its files.
    Raises RestoreRefused if it may not be replaced.
    """
    from pitr.datakeys import DataKeys
    from pitr.restore_estimate import estimate_delta
    from pitr.restore_files import ChainLink
    from pitr.restore_journal import WorkDirectory
    from pitr.restore_place import tablespace_locations
    from pitr.restore_replace import find_old

    journal = WorkDirectory.of(into.absolute()).read()
    if journal is not None and journal.phase in _PAST_FILES:
        output.line("delta     an interrupted restore goes on: the files are there")
        return None
    places = tablespace_locations(plan.backup, read_mapping(chosen["tablespace_map"]))
    old = find_old(into, places, plan.backup, foreign=chosen["replace_cluster"])
    if old is None:
        output.line("delta     nothing is there: all is fetched")
        return None
    assert reader.identity is not None, "the command asks for an identity first"
    keys = DataKeys(reader.repository, reader.identity.identity)
    chain = [ChainLink.open(one, keys) for one in (plan.backup, *plan.parents)]
    with tempfile.TemporaryDirectory(prefix="pitr-delta-") as folder:
        found = estimate_delta(reader.store, chain, old.directory, Path(folder) / "files.sqlite")
    kept, size = format_bytes(found.kept_bytes), format_bytes(found.size_bytes)
    output.line(
        f"delta     {kept} of {size} are right there already, {format_bytes(found.fetched_bytes)} are fetched"
    )
    output.line(f"          {into} is kept until the restore has succeeded: {size} more are needed beside it")
    for place in old.left:
        output.warn(f"what the old cluster has in {place} stays there, and is yours")
    return {
        "fetched_bytes": found.fetched_bytes,
        "kept_bytes": found.kept_bytes,
        "left": [str(place) for place in old.left],
    }


def cache_dir() -> Path:
    """Make and return the folder for programs that the server's user cannot read where they are.

    Raises ServerRefused if somebody else has taken its name.
    """
    import os
    import tempfile

    from pitr.errors import ServerRefused

    folder = Path(tempfile.gettempdir()) / f"pitr-postgres-{os.geteuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        # Programs are run from here: a folder that somebody else made could hold anything.
        raise ServerRefused(f"{folder} belongs to another user", hint=f"remove {folder}")
    folder.chmod(0o755)
    return folder
