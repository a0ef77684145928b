"""The options of whatever a verifier runs and reports: ``pitr verify`` and ``pitr drill start``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click

from cli.verify_settings import VerifySettings

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)


class Said(TypedDict):
    """What somebody says of findings and people, by the names of the options and of the choices."""

    retests: tuple[str, ...]
    corrective_action: str | None
    root_cause: str | None
    participants: tuple[tuple[str, str], ...]
    notified: tuple[str, ...]
    owner: str | None


_OPTIONS = (
    click.option(
        "--identity", type=_PATH, help="The reader's identity file (default: [verify] identity_file)."
    ),
    click.option("--archive", metavar="SYSTEM/EPOCH", help="Which archive, if there are several."),
    click.option("--scratch", type=_PATH, help="Restore below this folder, which is wiped."),
    click.option("--reports", type=_PATH, help="Export reports and log to this folder."),
    click.option("--key", type=_PATH, help="The verifier's key (default: [verify] key_file)."),
    click.option(
        "--retests", multiple=True, metavar="FINDING", help="Try this finding again; may be repeated."
    ),
    click.option(
        "--corrective-action", metavar="TEXT", help="What was done about the findings that are retested."
    ),
    click.option("--root-cause", metavar="TEXT", help="Why the findings that are retested came about."),
    click.option(
        "--participant",
        "participants",
        multiple=True,
        nargs=2,
        metavar="NAME ROLE",
        help="Who takes part, and as what; may be repeated.",
    ),
    click.option(
        "--notified", multiple=True, metavar="WHO", help="Who is told of this run; may be repeated."
    ),
    click.option("--owner", metavar="NAME", help="Who sees to new findings (default: [verify] owner)."),
    click.option("--due", metavar="DURATION", help="Until when, from now (default: [verify] due, 14d)."),
    click.option(
        "--mirror",
        is_flag=True,
        help="C16 reads the copy that MirrorMaker made ([events.mirror]), and never asks the source.",
    ),
    click.option("--scheduled", is_flag=True, hidden=True),
)


def with_paths(config: VerifySettings, **typed: Path | None) -> VerifySettings:
    """Return the settings with the paths that were typed, by the names that they have there."""
    found: dict[str, Any] = {name: path.absolute() for name, path in typed.items() if path is not None}
    return replace(config, **found)


def verifier_options(command: _Command) -> _Command:
    """Give a command where its run takes place, who it is, and what becomes of its findings."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
