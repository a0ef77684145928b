"""The pages that are made from the program, and the example that must be good."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click

from cli.commands import COMMANDS, pitr
from cli.config_schema import check_tables
from cli.config_template import NewConfig, NewRegion, render_config
from cli.help_page import walk
from cli.metrics import metric_names
from cli.settings import Settings
from pitr.pipeline.keys import Identity

ROOT = Path(__file__).parents[2]


def test_the_page_of_commands_is_what_the_program_says() -> None:
    # In a process of its own: click keeps a command's help option as it was first asked for it.
    words = [sys.executable, "-m", "cli.help_page"]
    page = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (ROOT / "docs/cli.md").read_text() == page, "python -m cli.help_page > docs/cli.md"


def test_every_option_that_may_be_repeated_says_so() -> None:
    options = [
        (path, option)
        for path, command in walk("pitr", pitr)
        for option in command.params
        if isinstance(option, click.Option) and (option.multiple or option.nargs == -1)
    ]
    assert len(options) > 5
    assert [(path, one.name) for path, one in options if "may be repeated" not in (one.help or "")] == []


def test_every_command_takes_json() -> None:
    without = [
        path
        for path, command in walk("pitr", pitr)
        if not isinstance(command, click.Group) and not any("--json" in one.opts for one in command.params)
    ]
    assert without == []


def test_the_list_of_commands_has_each_commands_own_first_sentence() -> None:
    for name, lazy in COMMANDS.items():
        assert (lazy.load().help or "").split("\n")[0].strip() == lazy.short_help, name


def test_the_page_of_metrics_lists_exactly_what_is_served() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(pitr_[a-z_]+)` \| (.+?) \|$", page, re.MULTILINE))
    served = dict(metric_names())
    assert rows.keys() == served.keys()
    for name, text in served.items():
        assert rows[name].startswith(text), name


def test_the_example_is_a_good_configuration_and_what_init_writes() -> None:
    path = ROOT / "examples/pitr.toml"
    text = path.read_text()
    settings = check_tables(tomllib.loads(text), base=path.parent, path=path)
    assert isinstance(settings, Settings), settings
    new = NewConfig(
        cluster=settings.cluster.name,
        dsn=settings.cluster.dsn,
        slot=settings.cluster.slot,
        repository=settings.repository.repository,
        root=settings.keys.root,
        recipients=settings.keys.recipients,
        quorum=settings.repository.quorum,
        regions=tuple(NewRegion(one.name, one.url, one.credentials_file) for one in settings.regions),
        signing_key_file=settings.keys.signing_key_file,
        state_dir=settings.daemon.state_dir,
        timezone=settings.timezone,
    )
    assert render_config(new) == text


def test_the_page_of_the_configuration_names_every_setting() -> None:
    page = (ROOT / "docs/config.md").read_text()
    tables = tomllib.loads((ROOT / "examples/pitr.toml").read_text())
    tables["keys"]["recipients_file"] = tables["region"][0]["credentials_profile"] = tables["postgres"][
        "bin_dir"
    ] = ""
    for name, table in tables.items():
        inner = table[0] if isinstance(table, list) else table
        for key in inner if isinstance(inner, dict) else [name]:
            assert f"`{key}`" in page, f"{name}.{key}"


def test_the_example_holds_no_secret() -> None:
    text = (ROOT / "examples/pitr.toml").read_text()
    assert str(Identity(bytes(range(32))).root_signer().public) in text, (
        "made from a key that everybody knows"
    )
    assert "PITR-IDENTITY" not in text
