"""The command that goes on with an interrupted restore, as it is kept and shown."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from cli.commands import pitr
from cli.context import App
from cli.reading import Source
from cli.restore import Chosen
from cli.restore_again import Meant, asked_of

CHOSEN = Chosen(
    start=True,
    tablespace_map=("16400=/new/place",),
    wal_dir=None,
    delta=False,
    replace_cluster=None,
    owner=None,
    workers=4,
    superuser=None,
    certificate=None,
    no_verify=False,
    replay=False,
    handlers=None,
    accepted=(),
    mirror=False,
)


def test_it_has_the_zone_and_the_configuration_that_its_time_was_read_with() -> None:
    app = App(zone="Europe/Berlin", config_path=Path("/srv/pitr.toml"))
    meant = Meant("2026-11-23 14:05", is_exclusive=True, timeline="latest", backup=None, without=())
    source = Source((), Path("key.toml"), None, "7/1")
    asked = asked_of(app, meant, Path("restored"), source, "promote", CHOSEN)
    assert asked.target == "'2026-11-23 14:05' --exclusive"
    words = shlex.split(asked.command)
    assert words[:2] == ["pitr", "restore"]
    # Read as it stands it asks for the same.
    read = App()
    command = pitr.get_command(click.Context(pitr, obj=read), "restore")
    assert command is not None
    values = command.make_context("restore", words[2:], obj=read).params
    assert (read.zone, read.config_path) == (app.zone, app.config_path)
    assert (values["target"], values["exclusive"], values["start"]) == (meant.target, True, True)
    assert (values["source_identity"], values["source_archive"]) == (Path("key.toml"), "7/1")


def test_without_them_it_is_as_short_as_it_was_typed() -> None:
    meant = Meant("latest", is_exclusive=False, timeline="latest", backup=None, without=())
    asked = asked_of(App(), meant, Path("restored"), Source(), "promote", {**CHOSEN, "tablespace_map": ()})
    assert asked.command == "pitr restore --to latest --into restored --start"
