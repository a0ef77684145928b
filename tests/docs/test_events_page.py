"""The handlers file of the examples is good, and what docs/events.md says of one is what is read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from cli import handlers_file
from cli.handlers_file import read_handlers
from pitr.events.quarantine import Reason

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/events.md").read_text(encoding="utf-8")


def test_the_example_is_a_good_handlers_file() -> None:
    found = read_handlers(ROOT / "examples/events/handlers.toml")
    assert len(found.handlers) == 3
    assert found.rules
    assert found.upcasts


def test_the_page_names_every_setting_of_a_handlers_file_and_every_reason() -> None:
    section = PAGE[PAGE.index("## Replay") :]
    named = set(re.findall(r"`([a-z_]+)(?: = [^`]*)?`", section))
    settings = {name for names in handlers_file.KNOWN.values() for name in names}
    tables = {"handler", "upcast", "quarantine", "sink", "classes"}
    assert settings - tables <= named, settings - tables - named
    for reason in Reason:
        assert f"`{reason}`" in section, reason


def test_the_example_has_no_setting_that_the_page_lacks() -> None:
    tables = tomllib.loads((ROOT / "examples/events/handlers.toml").read_text())
    assert set(tables) <= set(handlers_file.KNOWN[""])
