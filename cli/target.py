"""Recovery targets as options: read once at the edge, against this host's clock and zone."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from cli.context import App
from cli.errors import UsageRefused

if TYPE_CHECKING:
    from pitr.recovery import RecoveryTarget, TargetTimeline

Command = TypeVar("Command", bound=Callable[..., Any])
_ZONE_LINK = Path("/etc/localtime")
_ZONE_FOLDER = "zoneinfo/"


def local_zone() -> str:
    """Return the IANA name of this host's zone, for showing times only; UTC if it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if not named:
        place = str(_ZONE_LINK.resolve()) if _ZONE_LINK.is_symlink() else ""
        named = place.partition(_ZONE_FOLDER)[2] if _ZONE_FOLDER in place else "UTC"
    return named if is_zone(named) else "UTC"


def is_zone(name: str) -> bool:
    """Tell whether this is an IANA zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def read_target(app: App, text: str, *, is_inclusive: bool, timeline: str) -> RecoveryTarget:
    """Read a target's text as it was typed.  Raises TargetRefused, UsageRefused for zone and timeline."""
    from pitr.targets import parse_target

    zone = app.time_zone()
    if zone is not None and not is_zone(zone):
        raise UsageRefused(f"there is no time zone {zone!r}", hint="name an IANA zone such as Europe/Berlin")
    return parse_target(
        text,
        now=datetime.now(UTC),
        zone=zone,
        local_zone=zone or local_zone(),
        is_inclusive=is_inclusive,
        timeline=read_timeline(timeline),
    )


def read_timeline(text: str) -> TargetTimeline:
    """Read a timeline: ``latest``, ``current`` or a number, as PostgreSQL's setting has it."""
    from pitr.wal.timeline import TimelineId

    if text == "latest":
        return "latest"
    if text == "current":
        return "current"
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32:
        return TimelineId(int(text))
    raise UsageRefused(f"not a timeline: {text!r}", hint="give latest, current, or its number such as 2")


def target_options(command: Command) -> Command:
    """Give a command the options that say how a target is meant, and which backup may serve it."""
    options = [
        click.option("--exclusive", is_flag=True, help="Leave out what happened exactly at the target."),
        click.option(
            "--timeline",
            default="latest",
            show_default=True,
            metavar="N|latest|current",
            help="Timeline to follow.",
        ),
        click.option(
            "--backup", "backup_id", metavar="ID", help="Start from this backup (default: the best)."
        ),
        click.option(
            "--without",
            "damaged",
            multiple=True,
            metavar="ID",
            help="Leave out this backup, such as a damaged one; may be repeated.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
