"""What the threat model and the runbooks name is there: code, tests, commands with their options, alerts."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest

from cli.commands import pitr
from cli.context import App

ROOT = Path(__file__).resolve().parents[2]
THREATS = ROOT / "docs" / "threat-model.md"
OTHERWISE = ROOT / "docs" / "adr" / "0020-what-is-built-otherwise.md"
RUNBOOKS = sorted((ROOT / "docs" / "operations").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
RULES = ROOT / "examples" / "prometheus" / "pitr-rules.yml"
_BLOCK_LINE = re.compile(r"^(?: {4,})(pitr .*)$", re.MULTILINE)


@cache
def names_of_tests() -> frozenset[str]:
    """Return the names of all tests."""
    found = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return frozenset(name for name in found if name.startswith("test_"))


@pytest.mark.parametrize(("page", "files_least", "tests_least"), [(THREATS, 16, 21), (OTHERWISE, 4, 1)])
def test_a_page_names_code_and_tests_that_there_are(page: Path, files_least: int, tests_least: int) -> None:
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"`([a-z]+/[\w./-]+\.(?:py|yml))`", text))
    assert len(files) >= files_least
    assert [name for name in sorted(files) if not (ROOT / name).is_file()] == []
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) >= tests_least
    assert sorted(named - names_of_tests()) == []


def test_every_defence_of_the_threat_model_has_code_and_a_test() -> None:
    rows = [
        line.split(" | ") for line in THREATS.read_text(encoding="utf-8").splitlines() if "`test_" in line
    ]
    assert len(rows) > 15
    for row in rows:
        if len(row) > 1:
            assert len(row) == 4, row
            assert re.search(r"`[\w/.-]+\.py`", row[2]), row


def calls() -> list[object]:
    """Return the words of each call of ``pitr`` in a runbook or an example's page, with where it stands."""
    found: list[object] = []
    for page in [*RUNBOOKS, *EXAMPLES]:
        for line in _BLOCK_LINE.findall(page.read_text(encoding="utf-8")):
            words = shlex.split(line, comments=True)[1:]
            found.append(pytest.param(words, id=f"{page.stem}-{'-'.join(words)[:40]}"))
    return found


def test_the_runbooks_have_commands() -> None:
    assert len(calls()) > 25


@pytest.mark.parametrize("words", calls())
def test_a_command_of_a_runbook_is_accepted_as_it_stands(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parsed with its values, and not run; files that it must find are made.
    monkeypatch.chdir(tmp_path)
    for word in words:
        if re.fullmatch(r"[\w-]+\.toml", word):
            (tmp_path / word).touch()
    command: click.Command = pitr
    context = click.Context(pitr, info_name="pitr", obj=App())
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest[0])
        if found is None:
            assert command.invoke_without_command, f"there is no command {rest[0]}"
            break
        rest.pop(0)
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=command.name)
    command.make_context(words[0], rest, parent=context)


def test_every_alert_has_a_runbook() -> None:
    there = set(re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")))
    named = set(re.findall(r"`(Pitr\w+)`", (ROOT / "docs/operations/README.md").read_text(encoding="utf-8")))
    assert named == there


def test_every_folder_of_examples_has_a_page_that_names_its_files() -> None:
    folders = [path for path in (ROOT / "examples").iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        text = (folder / "README.md").read_text(encoding="utf-8")
        for file in folder.iterdir():
            if file.name not in {"README.md", "__pycache__"}:
                assert file.name in text, file
