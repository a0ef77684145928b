"""A click group that imports a command only when it is run or asked for help.

Importing everything takes over a second on a busy host; ``pitr --help`` and
``pitr wal fetch`` must not pay for boto3.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is, and its line in the group's help (a test keeps the two texts equal)."""

    module: str
    attribute: str
    short_help: str

    def load(self) -> click.Command:
        """Import the command."""
        command = getattr(importlib.import_module(self.module), self.attribute)
        assert isinstance(command, click.Command)
        name_variables(command, f"PITR_{self.attribute.upper()}")
        return command


def name_variables(command: click.Command, prefix: str) -> None:
    """Name each option's environment variable by the option as it is typed: ``PITR_RESTORE_FROM``.

    click would take the name of the function's parameter, which nobody but us knows.
    """
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            typed = max(parameter.opts, key=len).lstrip("-").replace("-", "_").upper()
            parameter.envvar = f"{prefix}_{typed}"
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            name_variables(inner, f"{prefix}_{name.upper()}")


class LazyGroup(click.Group):
    """A group of ``LazyCommand``s."""

    lazy_commands: Mapping[str, LazyCommand]

    def __init__(self, *args: Any, lazy_commands: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands = lazy_commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table: the order in which a user meets them."""
        return [*self.lazy_commands, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is no such one."""
        lazy = self.lazy_commands.get(cmd_name)
        return lazy.load() if lazy is not None else super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant; for a mistyped one, name those that are alike."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                args[0], possibilities=self.lazy_commands, ctx=ctx
            ) from error

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        rows = [(name, lazy.short_help) for name, lazy in self.lazy_commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
