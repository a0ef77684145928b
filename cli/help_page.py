"""docs/cli.md, made from the commands' own help, so that the two cannot differ.

python -m cli.help_page > docs/cli.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from cli.commands import pitr

WIDTH = 100
_HEAD = """\
# The commands of `pitr`

This page is made from the commands' own help (`python -m cli.help_page > docs/cli.md`), and a test compares
the two. Exit codes: [exit-codes.md](exit-codes.md). Targets: [targets.md](targets.md). What can be
restored: [timeline.md](timeline.md). Verified restores: [verify.md](verify.md). Drills:
[drills.md](drills.md). The last good moment: [find.md](find.md). Configuration:
[config.md](config.md).

Results go to standard output; log, progress and errors to standard error. Every command takes
`--json`: standard output then has one object, also when it fails: `{"schema": "pitr/1", "command",
"ok", "data", "warnings", "error"}`. Every option can be set as an environment variable,
`PITR_COMMAND_OPTION`, such as `PITR_RESTORE_WORKERS=8`; `PITR_CONFIG` names the configuration.
"""


def render() -> str:
    """Return the page."""
    return _HEAD + "".join(_section(path, command) for path, command in walk("pitr", pitr))


def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield each command below ``command``, itself first, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(f"{path} {name}", inner)


def _section(path: str, command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=path,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return f"\n## {path}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(render())
