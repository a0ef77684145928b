"""README.md names only commands and options that there are; and the links of every page lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cli.commands import pitr
from cli.context import App

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"(?:^(?: {4}.*)?\n)*^ {4}.*$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def _shell_lines(text: str) -> list[str]:
    """Return the commands of the indented and fenced blocks; one that goes on in the next line is one."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += ["\n".join(line[4:] for line in block.splitlines()) for block in _BLOCK.findall(text)]
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def pitr_calls(text: str) -> list[list[str]]:
    """Return the words of each call of ``pitr`` in the blocks of a page."""
    calls = [shlex.split(line, comments=True) for line in _shell_lines(text)]
    return [words[1:] for words in calls if words and words[0] == "pitr"]


CALLS = pitr_calls(README)


def test_the_readme_shows_the_way_from_init_to_restore() -> None:
    assert [words[0] for words in CALLS] == ["init", "doctor", "daemon", "restore"]


@pytest.mark.parametrize("words", CALLS, ids=lambda words: words[0])
def test_a_call_in_the_readme_is_accepted_as_it_stands(words: list[str]) -> None:
    # Parsed with its values, and not run.
    command: click.Command = pitr
    context = click.Context(pitr, info_name="pitr", obj=App())
    rest = list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    command.make_context(words[0], rest, parent=context)


def test_the_make_targets_of_the_readme_are_there() -> None:
    wanted = set(re.findall(r"^ {4}make ([a-z-]+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert wanted
    assert wanted <= targets


@pytest.mark.parametrize(
    "page",
    [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
    ],
    ids=lambda page: f"{page.parent.name}-{page.stem}",
)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing
