"""What every command is given: the choices on the command line, the output, the configuration on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.output import Output

if TYPE_CHECKING:
    from cli.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(slots=True)
class App:
    """One run of ``pitr``."""

    output: Output = field(default_factory=Output)
    config_path: Path | None = None
    is_yes: bool = False
    zone: str | None = None
    verbosity: int = 0
    log_format: str = "text"
    # What a failing command has found so far: it goes into the JSON object beside the error.
    partial_result: dict[str, object] | None = None
    _settings: Settings | None = None

    def settings(self) -> Settings:
        """Return the configuration; read once.  Raises ConfigRefused, NotInitialised, UsageRefused."""
        if self._settings is None:
            from cli.config import find_config, load_settings

            self._settings = load_settings(find_config(self.config_path))
        return self._settings

    def time_zone(self) -> str | None:
        """Return the zone for times that name none: ``--tz``, else the configuration's, else None."""
        if self.zone is not None:
            return self.zone
        from cli.config import find_config_or_none

        if self._settings is None and find_config_or_none(self.config_path) is None:
            return None
        return self.settings().timezone


def current() -> App:
    """Return the run that the command belongs to."""
    ctx = click.get_current_context()
    app = ctx.find_object(App)
    assert app is not None, "main makes the App before any command runs"
    app.output.command = ctx.command_path.removeprefix("pitr ")
    return app


def _set_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(App).output.is_json = True


def _set_quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(App).output.is_quiet = True


def _set_verbose(ctx: click.Context, _parameter: click.Parameter, value: int) -> None:
    ctx.ensure_object(App).verbosity += value


def _set_config(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(App).config_path = value


def _set_yes(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(App).is_yes = True


def _set_zone(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(App).zone = value


def common_options(command: Command) -> Command:
    """Give a command the options that may stand before or after its name."""
    options = [
        click.option(
            "-c",
            "--config",
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_set_config,
            help="Configuration file.",
        ),
        click.option(
            "--json", is_flag=True, expose_value=False, callback=_set_json, help="One JSON object as result."
        ),
        click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="No progress."
        ),
        click.option(
            "-v", "--verbose", count=True, expose_value=False, callback=_set_verbose, help="Log more."
        ),
        click.option(
            "--tz",
            metavar="ZONE",
            expose_value=False,
            callback=_set_zone,
            help="IANA zone of times that name none.",
        ),
        click.option("--yes", is_flag=True, expose_value=False, callback=_set_yes, help="Do not ask."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
